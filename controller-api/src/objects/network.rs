//! Networks that vNICs join by name.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

object! {
    /// A network behind a port.
    PublicNetwork {
        /// The port.
        pub port: String,
        /// Its VLAN there; default: untagged.
        pub vlan: Option<u16>,
        /// For people.
        pub descr: String,
    }
}

object! {
    /// A private network: vNICs see each other and no port.
    Pvi {
        /// For people.
        pub descr: String,
    }
}
