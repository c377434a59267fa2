//! Settings of the whole system.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

object! {
    /// Settings of the whole system.
    System {
        /// Certificate of the authority, on every machine; empty: no TLS.
        pub tls_ca: String,
        /// Certificate of a machine; `{name}` is its name.
        pub tls_cert: String,
        /// Key of a machine; `{name}` is its name.
        pub tls_key: String,
        /// Whether links without TLS may leave a machine.
        pub insecure: bool,
        /// The number of the next device; kept by the controller.
        pub next_id: u32,
        /// For people.
        pub descr: String,
    }
}
