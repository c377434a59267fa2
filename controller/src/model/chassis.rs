//! Directors, their modules and ports.

use controller_api::objects::{Director, EthernetPort, FcPort, Iocard, Lag};

use super::item::Item;
use super::port::{self, PortRef, PortUse};
use super::{Model, Problem, names, policy, ranges};

impl Item for Director {
    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        Ok(())
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut hosts = model.hosts.iter();
        let served = hosts.find(|(_, host)| model.director_of(host) == Some(name));
        served.map(|(host, _)| format!("host {host}"))
    }

    fn removing(name: &str, model: &mut Model) {
        let first = model.first_director() == Some(name);
        model.iocards.retain(|card, _| match port::split(card) {
            (Some(director), _) => director != name,
            (None, _) => !first,
        });
    }
}

impl Item for Iocard {
    fn check_name(name: &str) -> Result<(), Problem> {
        let (director, slot) = port::split(name);
        director.map_or(Ok(()), names::plain)?;
        port::slot(slot).map(|_slot| ())
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        let (Some(director), slot) = port::split(name) else {
            return Ok(());
        };
        if !model.directors.contains_key(director) {
            return Err(no_director(director));
        }
        if model.first_director() == Some(director) && model.iocards.contains_key(slot) {
            return Err(Problem::conflict(
                format_args!("slot {slot} of director {director} has module {slot}"),
                format_args!("set or remove iocard {slot}"),
            ));
        }
        Ok(())
    }
}

/// Refers to a director that is not there.
pub(super) fn no_director(name: &str) -> Problem {
    Problem::not_found(
        format_args!("there is no director {name}"),
        format_args!("add director {name}, or use one of show director"),
    )
}

impl Item for EthernetPort {
    fn check_name(name: &str) -> Result<(), Problem> {
        name.parse::<PortRef>().map(|_port| ())
    }

    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        policy::settle_rate(&mut self.rate)?;
        policy::settle_rate(&mut self.reservable)
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        model.check_port(&name.parse()?, PortUse::Ethernet)
    }
}

impl Item for FcPort {
    fn check_name(name: &str) -> Result<(), Problem> {
        name.parse::<PortRef>().map(|_port| ())
    }

    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        policy::settle_rate(&mut self.rate)?;
        policy::settle_rate(&mut self.reservable)
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        model.check_port(&name.parse()?, PortUse::San)
    }
}

impl Item for Lag {
    fn check_name(name: &str) -> Result<(), Problem> {
        port::lag(name).map(|_lag| ())
    }

    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        self.ports = ranges::text(&ranges::parse(&self.ports, 1, 255)?);
        Ok(())
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        let (slot, _) = port::lag(name)?;
        let ports = ranges::parse(&self.ports, 1, 255)?;
        for port in &ports {
            let port = format!("{slot}/{port}").parse()?;
            model.check_port(&port, PortUse::Ethernet)?;
        }
        let others = model.lags.iter().filter(|(other, _)| *other != name);
        for (other, lag) in others {
            if port::lag(other)?.0 != slot {
                continue;
            }
            let shared = ranges::parse(&lag.ports, 1, 255)?;
            if let Some(port) = shared.intersection(&ports).next() {
                return Err(Problem::conflict(
                    format_args!("port {slot}/{port} is in lag {other}"),
                    "leave it out of one of them",
                ));
            }
        }
        Ok(())
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut vnics = model.vnics.iter();
        let user = vnics.find(|(_, vnic)| vnic.termination == name || vnic.ha == name);
        user.map(|(user, _)| format!("vnic {user}"))
    }
}
