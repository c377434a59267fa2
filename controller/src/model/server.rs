//! Hosts and the servers on them.

use controller_api::objects::{Host, PhysicalServer};

use super::chassis::no_director;
use super::item::Item;
use super::{Model, Problem, names, policy};

impl Model {
    /// The director that serves a host.
    pub(crate) fn director_of<'a>(&'a self, host: &'a Host) -> Option<&'a str> {
        match host.director.as_str() {
            "" => self.first_director(),
            name => Some(name),
        }
    }
}

impl Item for Host {
    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        let rates = [
            &mut self.rate,
            &mut self.payload,
            &mut self.reservable,
            &mut self.protected,
        ];
        rates.into_iter().try_for_each(policy::settle_rate)
    }

    fn check(&self, _: &str, model: &Model) -> Result<(), Problem> {
        let Some(director) = model.director_of(self) else {
            return Err(Problem::not_found(
                "there is no director",
                "add director NAME first",
            ));
        };
        if !model.directors.contains_key(director) {
            return Err(no_director(director));
        }
        Ok(())
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut servers = model.physical_servers.iter();
        let user = servers.find(|(_, server)| server.host == name);
        user.map(|(user, _)| format!("physical-server {user}"))
    }
}

impl Item for PhysicalServer {
    fn check_name(name: &str) -> Result<(), Problem> {
        names::physical_server(name)
    }

    fn check(&self, _: &str, model: &Model) -> Result<(), Problem> {
        if self.host.is_empty() || model.hosts.contains_key(&self.host) {
            return Ok(());
        }
        Err(Problem::not_found(
            format_args!("there is no host {}", self.host),
            format_args!("add host {} first, or leave -host out", self.host),
        ))
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut profiles = model.server_profiles.iter();
        let user = profiles.find(|(_, profile)| profile.server == name);
        user.map(|(user, _)| format!("server-profile {user}"))
    }
}
