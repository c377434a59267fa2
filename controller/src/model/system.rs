//! Settings of the whole system.

use controller_api::objects::System;

use super::item::Item;
use super::{Model, Problem, SYSTEM};

impl Item for System {
    const KEPT: &'static [&'static str] = &["next-id"];

    fn check_name(name: &str) -> Result<(), Problem> {
        if name == SYSTEM {
            return Ok(());
        }
        Err(Problem::invalid(
            "there is one system",
            format_args!("call it {SYSTEM}"),
        ))
    }

    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        let paths = [&self.tls_ca, &self.tls_cert, &self.tls_key];
        let given = paths.iter().filter(|path| !path.is_empty()).count();
        if given == 0 || given == paths.len() {
            return Ok(());
        }
        Err(Problem::invalid(
            "TLS takes three files",
            "say -tls-ca, -tls-cert and -tls-key, or none of them",
        ))
    }

    fn user(_: &str, _: &Model) -> Option<String> {
        Some("the controller".to_owned())
    }
}

/// A number that no device has had.
pub(super) fn take_id(model: &mut Model) -> u32 {
    let mut system = model
        .system
        .get(SYSTEM)
        .map(|system| System::clone(system))
        .unwrap_or_default();
    let id = system.next_id.max(1);
    system.next_id = id.saturating_add(1);
    model.system.insert(SYSTEM.to_owned(), system.into());
    id
}
