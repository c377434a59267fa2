//! Templates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Fields;

object! {
    /// Devices of profiles that are alike. Profiles that have it follow what is changed here; what was
    /// changed at a device itself stays until the template changes the same field.
    Template {
        /// Fields of vNICs, by the name in the profile.
        #[schema(value_type = Object)]
        pub vnics: BTreeMap<String, Fields>,
        /// Fields of vHBAs, by the name in the profile.
        #[schema(value_type = Object)]
        pub vhbas: BTreeMap<String, Fields>,
        /// For people.
        pub descr: String,
    }
}
