//! Server profiles.

use controller_api::objects::ServerProfile;

use super::item::Item;
use super::{Model, Problem, names, policy};

impl Item for ServerProfile {
    const KEPT: &'static [&'static str] = &["generation"];

    fn check_name(name: &str) -> Result<(), Problem> {
        names::profile(name)
    }

    fn settle(&mut self, _: &str, before: Option<&Self>, model: &mut Model) -> Result<(), Problem> {
        if self.server == "none" {
            self.server.clear();
        }
        policy::settle_rate(&mut self.ingress_pir)?;
        policy::settle_rate(&mut self.egress_pir)?;
        if names::physical_server(&self.server).is_ok() {
            // It has been named, so it can be shown.
            model
                .physical_servers
                .entry(self.server.clone())
                .or_default();
        }
        // A device of an older generation has lost its owner: the new one is connected with the next.
        if let Some(before) = before {
            self.generation = self.generation.max(before.generation);
            if self.server != before.server && !self.server.is_empty() {
                self.generation = self.generation.saturating_add(1);
            }
        }
        Ok(())
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        if !self.template.is_empty() && !model.templates.contains_key(&self.template) {
            return Err(Problem::not_found(
                format_args!("there is no template {}", self.template),
                "use one of show template",
            ));
        }
        if !self.default_gateway.is_empty() {
            super::device::address(&self.default_gateway)?;
        }
        if self.server.is_empty() {
            return Ok(());
        }
        names::physical_server(&self.server)?;
        let mut others = model
            .server_profiles
            .iter()
            .filter(|(other, _)| *other != name);
        match others.find(|(_, other)| other.server == self.server) {
            Some((other, _)) => Err(Problem::conflict(
                format_args!("{} is connected to server-profile {other}", self.server),
                format_args!("set server-profile {other} disconnect first"),
            )),
            None => Ok(()),
        }
    }

    fn removing(name: &str, model: &mut Model) {
        model
            .vnics
            .retain(|device, _| names::profile_of(device) != name);
        model
            .vhbas
            .retain(|device, _| names::profile_of(device) != name);
    }
}
