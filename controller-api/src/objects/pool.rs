//! Where addresses come from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

object! {
    /// Addresses in a row. The pool called `default` is there from the start.
    Pool {
        /// The first one, like `02:13:97:00:00:00` or `30:00:13:97:00:00:00:00`.
        pub first: String,
        /// How many there are.
        pub size: u64,
        /// The next one that is tried, counted from the first; kept by the controller, so that an
        /// address that was given back is not given out again at once.
        pub cursor: u64,
        /// For people.
        pub descr: String,
    }
}
