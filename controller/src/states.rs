//! What becomes of objects, from what is wanted and what was reported.

use std::collections::BTreeMap;

use controller_api::objects::{Vhba, Vnic};
use controller_api::{AdminState, Kind, OperState, Status};

use crate::model::{Model, Place, Resolved, profile_of};
use crate::reconcile::Reports;

/// The states of all vNICs and vHBAs.
pub(crate) fn devices(model: &Model, reports: &Reports) -> BTreeMap<(Kind, String), Status> {
    let vnics = model.vnics.keys().map(|name| (Kind::Vnic, name));
    let vhbas = model.vhbas.keys().map(|name| (Kind::Vhba, name));
    vnics
        .chain(vhbas)
        .map(|(kind, name)| ((kind, name.clone()), status(model, reports, kind, name)))
        .collect()
}

/// The state of an object.
pub(crate) fn status(model: &Model, reports: &Reports, kind: Kind, name: &str) -> Status {
    match kind {
        Kind::Vnic => model
            .vnics
            .get(name)
            .map(|vnic| vnic_status(model, reports, name, vnic)),
        Kind::Vhba => model
            .vhbas
            .get(name)
            .map(|vhba| vhba_status(model, reports, name, vhba)),
        Kind::ServerProfile => Some(profile_status(model, reports, name)),
        Kind::PhysicalServer => Some(server_status(model, name)),
        Kind::Host | Kind::Director => Some(node_status(model, reports, name)),
        Kind::Iocard => model.iocards.get(name).map(|card| {
            let oper = match card.admin {
                AdminState::Up => OperState::Up,
                AdminState::Down => OperState::Down,
            };
            Status::new(card.admin, oper)
        }),
        _ => None,
    }
    .unwrap_or_default()
}

fn vnic_status(model: &Model, reports: &Reports, name: &str, vnic: &Vnic) -> Status {
    let resolve = |director: &str| model.resolve_vnic(director, vnic);
    let end = if vnic.switched {
        &vnic.ha
    } else {
        &vnic.termination
    };
    let mut status = device_status(model, reports, name, vnic.admin, end, resolve);
    status
        .pending
        .extend(reports.pending(&format!("vnic {name}")));
    status.drift = model.drift(Kind::Vnic, name);
    status
}

fn vhba_status(model: &Model, reports: &Reports, name: &str, vhba: &Vhba) -> Status {
    let resolve = |director: &str| model.resolve_vhba(director, vhba);
    let mut status = device_status(model, reports, name, vhba.admin, &vhba.termination, resolve);
    if !vhba.map.is_empty() {
        let reason = "directors do not know it yet".to_owned();
        status.pending.insert("map".to_owned(), reason);
    }
    status
        .pending
        .extend(reports.pending(&format!("vhba {name}")));
    status.drift = model.drift(Kind::Vhba, name);
    status
}

fn device_status(
    model: &Model,
    reports: &Reports,
    name: &str,
    admin: AdminState,
    end: &str,
    resolve: impl Fn(&str) -> Resolved,
) -> Status {
    let (oper, reason) = device_oper(model, reports, name, admin, &resolve);
    let mut status = Status::new(admin, oper);
    status.reason = reason;
    if !end.is_empty() {
        let first = model.first_director().unwrap_or_default();
        let there = matches!(
            resolve(director_of(model, name).unwrap_or(first)),
            Resolved::Port(_)
        );
        let state = if there { "up/up" } else { "up/down" };
        status.if_state = Some(state.to_owned());
    }
    status
}

fn director_of<'a>(model: &'a Model, device: &str) -> Option<&'a str> {
    match model.place(model.server_profiles.get(profile_of(device))?) {
        Place::Host { director, .. } => Some(director),
        _ => None,
    }
}

fn device_oper(
    model: &Model,
    reports: &Reports,
    name: &str,
    admin: AdminState,
    resolve: &impl Fn(&str) -> Resolved,
) -> (OperState, Option<String>) {
    let Some(profile) = model.server_profiles.get(profile_of(name)) else {
        return (OperState::Unbound, None);
    };
    if admin == AdminState::Down {
        return (OperState::Down, None);
    }
    if profile.admin == AdminState::Down {
        return (
            OperState::Down,
            Some("its server-profile is down".to_owned()),
        );
    }
    let (host, director) = match model.place(profile) {
        Place::Unbound => return (OperState::Unbound, None),
        Place::Unassigned(reason) => return (OperState::Unassigned, Some(reason)),
        Place::Host { host, director } => (host, director),
    };
    match resolve(director) {
        Resolved::Nowhere => (OperState::Down, Some("it ends nowhere".to_owned())),
        Resolved::Missing(reason) => (OperState::ResourceUnavailable, Some(reason)),
        Resolved::Port(_) => match reports.has_device(host, name) {
            Some(true) => (OperState::Up, None),
            Some(false) => (
                OperState::Busy,
                Some(format!("host {host} has not taken it yet")),
            ),
            None => (
                OperState::Indeterminate,
                Some(format!("host {host} does not report")),
            ),
        },
    }
}

fn profile_status(model: &Model, reports: &Reports, name: &str) -> Status {
    let Some(profile) = model.server_profiles.get(name) else {
        return Status::default();
    };
    let vnics = model.vnics_of(name).map(|(device, vnic)| {
        let resolve = |director: &str| model.resolve_vnic(director, vnic);
        device_oper(model, reports, device, vnic.admin, &resolve).0
    });
    let vhbas = model.vhbas_of(name).map(|(device, vhba)| {
        let resolve = |director: &str| model.resolve_vhba(director, vhba);
        device_oper(model, reports, device, vhba.admin, &resolve).0
    });
    let devices: Vec<_> = vnics.chain(vhbas).collect();
    let (oper, reason) = match (profile.admin, model.place(profile)) {
        (AdminState::Down, _) => (OperState::Down, None),
        (_, Place::Unbound) => (OperState::Unbound, None),
        (_, Place::Unassigned(reason)) => (OperState::Unassigned, Some(reason)),
        (_, Place::Host { host, .. }) => {
            let missing = "a device has no port".to_owned();
            let silent = format!("host {host} does not report");
            if devices.contains(&OperState::ResourceUnavailable) {
                (OperState::ResourceUnavailable, Some(missing))
            } else if reports.has_device(host, "").is_none() {
                (OperState::Indeterminate, Some(silent))
            } else if devices.contains(&OperState::Busy) {
                (OperState::Busy, None)
            } else {
                (OperState::Up, None)
            }
        }
    };
    Status {
        reason,
        ..Status::new(profile.admin, oper)
    }
}

/// A server is up as soon as its host is known.
fn server_status(model: &Model, name: &str) -> Status {
    let mut profiles = model.server_profiles.values();
    let connected = profiles.find(|profile| profile.server == name);
    let probe = controller_api::objects::ServerProfile {
        server: name.to_owned(),
        ..Default::default()
    };
    let (oper, reason) = match model.place(&probe) {
        Place::Host { .. } => (OperState::Up, None),
        Place::Unbound => (OperState::Unbound, None),
        Place::Unassigned(reason) => (OperState::Unassigned, Some(reason)),
    };
    let admin = connected.map_or(AdminState::Up, |profile| profile.admin);
    Status {
        reason,
        ..Status::new(admin, oper)
    }
}

fn node_status(model: &Model, reports: &Reports, name: &str) -> Status {
    // An embedded director is up when its host is.
    let mut hosts = model.hosts_of(name);
    let embedding = hosts
        .find(|(_, host)| host.embedded)
        .map(|(host, _)| host.as_str());
    let (oper, reason) = match reports.is_up(embedding.unwrap_or(name)) {
        Some(Ok(())) => (OperState::Up, None),
        Some(Err(reason)) => (OperState::Down, Some(reason.to_owned())),
        None => (
            OperState::Indeterminate,
            Some("it does not report".to_owned()),
        ),
    };
    Status {
        reason,
        ..Status::new(AdminState::Up, oper)
    }
}
