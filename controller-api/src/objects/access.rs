//! Users and what groups of them may.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Role;

object! {
    /// A user; its name is that of the operating system.
    User {
        /// What the user may.
        pub role: Role,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// What the members of a group of the operating system may; its name is for people.
    RoleMapping {
        /// The group.
        pub group: String,
        /// What its members may.
        pub role: Role,
        /// For people.
        pub descr: String,
    }
}
