//! What becomes of objects, from what is wanted and what was reported.

use std::collections::BTreeMap;

use controller_api::objects::{Vhba, Vnic};
use controller_api::{AdminState, Kind, OperState, Status};

use qos_monitor::{DeviceState, GuestState};

use crate::model::{Model, Place, Resolved, profile_of};
use crate::reconcile::{Desired, Reports, Taken};

/// All that states follow from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) model: &'a Model,
    pub(crate) reports: &'a Reports,
    pub(crate) desired: &'a Desired,
}

/// The states of all vNICs and vHBAs.
pub(crate) fn devices(known: &Known<'_>) -> BTreeMap<(Kind, String), Status> {
    let vnics = known.model.vnics.keys().map(|name| (Kind::Vnic, name));
    let vhbas = known.model.vhbas.keys().map(|name| (Kind::Vhba, name));
    vnics
        .chain(vhbas)
        .map(|(kind, name)| ((kind, name.clone()), status(known, kind, name)))
        .collect()
}

/// The state of an object.
pub(crate) fn status(known: &Known<'_>, kind: Kind, name: &str) -> Status {
    let model = known.model;
    match kind {
        Kind::Vnic => model
            .vnics
            .get(name)
            .map(|vnic| vnic_status(known, name, vnic)),
        Kind::Vhba => model
            .vhbas
            .get(name)
            .map(|vhba| vhba_status(known, name, vhba)),
        Kind::ServerProfile => Some(profile_status(known, name)),
        Kind::PhysicalServer => Some(server_status(model, name)),
        Kind::Host | Kind::Director => Some(node_status(known, name)),
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

fn vnic_status(known: &Known<'_>, name: &str, vnic: &Vnic) -> Status {
    let resolve = |director: &str| known.model.resolve_vnic(director, vnic);
    let end = if vnic.switched {
        &vnic.ha
    } else {
        &vnic.termination
    };
    let device = Device {
        object: format!("vnic {name}"),
        name,
        admin: vnic.admin,
    };
    let mut status = device_status(known, &device, end, &resolve);
    status.drift = known.model.drift(Kind::Vnic, name);
    status
}

fn vhba_status(known: &Known<'_>, name: &str, vhba: &Vhba) -> Status {
    let resolve = |director: &str| known.model.resolve_vhba(director, vhba);
    let device = Device {
        object: format!("vhba {name}"),
        name,
        admin: vhba.admin,
    };
    let mut status = device_status(known, &device, &vhba.termination, &resolve);
    if !vhba.map.is_empty() {
        let reason = "directors do not know it yet".to_owned();
        status.pending.insert("map".to_owned(), reason);
    }
    status.drift = known.model.drift(Kind::Vhba, name);
    status
}

struct Device<'a> {
    /// As nodes call it.
    object: String,
    name: &'a str,
    admin: AdminState,
}

/// What a device is, why, and which of its fields are not in force.
type Oper = (OperState, Option<String>, BTreeMap<String, String>);

fn device_status(
    known: &Known<'_>,
    device: &Device<'_>,
    end: &str,
    resolve: &impl Fn(&str) -> Resolved,
) -> Status {
    let (oper, reason, pending) = device_oper(known, device, resolve);
    let mut status = Status::new(device.admin, oper);
    status.reason = reason;
    status.pending = pending;
    if !end.is_empty() {
        let first = known.model.first_director().unwrap_or_default();
        let there = matches!(
            resolve(director_of(known.model, device.name).unwrap_or(first)),
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
    known: &Known<'_>,
    device: &Device<'_>,
    resolve: &impl Fn(&str) -> Resolved,
) -> Oper {
    let is = |oper, reason: Option<String>| (oper, reason, BTreeMap::new());
    let Some(profile) = known.model.server_profiles.get(profile_of(device.name)) else {
        return is(OperState::Unbound, None);
    };
    if device.admin == AdminState::Down {
        return is(OperState::Down, None);
    }
    if profile.admin == AdminState::Down {
        let reason = "its server-profile is down".to_owned();
        return is(OperState::Down, Some(reason));
    }
    let (host, director) = match known.model.place(profile) {
        Place::Unbound => return is(OperState::Unbound, None),
        Place::Unassigned(reason) => return is(OperState::Unassigned, Some(reason)),
        Place::Host { host, director } => (host, director),
    };
    match resolve(director) {
        Resolved::Nowhere => is(OperState::Down, Some("it ends nowhere".to_owned())),
        Resolved::Missing(reason) => is(OperState::ResourceUnavailable, Some(reason)),
        Resolved::Port(_) => served(known, device, host, director),
    }
}

/// Of a device that its host and director have to serve: each must have taken it as it is, and say that
/// it works.
fn served(known: &Known<'_>, device: &Device<'_>, host: &str, director: &str) -> Oper {
    let reports = known.reports;
    let mut pending = reports.pending(&device.object);
    if let Some((field, reason)) = pending.first_key_value() {
        let reason = match field.as_str() {
            "all" => reason.clone(),
            field => format!("{field}: {reason}"),
        };
        return (OperState::Refused, Some(reason), pending);
    }
    // Of an embedded director there is no file of its own.
    let nodes = [host, director].map(|node| (node, known.desired.of(node)));
    let mut state: Option<(OperState, String)> = None;
    for (node, file) in nodes {
        let Some(file) = file else { continue };
        match reports.taken(node, device.name, file) {
            Taken::Yes => {}
            Taken::Unknown => {
                state.get_or_insert((OperState::Indeterminate, format!("{node} does not report")));
            }
            Taken::NotYet(fields) => {
                let (oper, reason) = match reports.refused(node) {
                    Some(why) => (OperState::Refused, format!("{node}: {why}")),
                    None => (OperState::Busy, format!("{node} has not taken it yet")),
                };
                pending.extend(fields.into_iter().map(|field| (field, reason.clone())));
                state.get_or_insert((oper, reason));
            }
        }
    }
    if let Some((oper, reason)) = state {
        return (oper, Some(reason), pending);
    }
    let (oper, reason) = match reports.device(host, device.name) {
        None => (
            OperState::Indeterminate,
            Some(format!("host {host} does not report")),
        ),
        Some(None) => (
            OperState::Busy,
            Some(format!("host {host} has not taken it yet")),
        ),
        Some(Some(state)) => at_host(state, host, director),
    };
    (oper, reason, pending)
}

fn at_host(state: &DeviceState, host: &str, director: &str) -> (OperState, Option<String>) {
    if let Some(reason) = &state.refused {
        let reason = format!("director {director}: {reason}");
        return (OperState::Refused, Some(reason));
    }
    if !state.attached {
        let reason = format!("director {director} does not serve it to host {host} yet");
        return (OperState::Busy, Some(reason));
    }
    match &state.guest {
        Some(GuestState::Failed(reason)) => (OperState::Refused, Some(format!("guest: {reason}"))),
        Some(GuestState::Waiting) => {
            let reason = "it is on its way into the guest".to_owned();
            (OperState::Busy, Some(reason))
        }
        Some(GuestState::Plugged | GuestState::NotRunning) | None => (OperState::Up, None),
    }
}

fn profile_status(known: &Known<'_>, name: &str) -> Status {
    let model = known.model;
    let Some(profile) = model.server_profiles.get(name) else {
        return Status::default();
    };
    let vnics = model
        .vnics_of(name)
        .map(|(device, vnic)| vnic_status(known, device, vnic));
    let vhbas = model
        .vhbas_of(name)
        .map(|(device, vhba)| vhba_status(known, device, vhba));
    let devices: Vec<_> = vnics.chain(vhbas).collect();
    let one = |oper: OperState| {
        let suffix = format!("/{oper}");
        let is = |status: &&Status| {
            status
                .state
                .as_ref()
                .is_some_and(|it| it.ends_with(&suffix))
        };
        devices.iter().find(is)
    };
    let (oper, reason) = match (profile.admin, model.place(profile)) {
        (AdminState::Down, _) => (OperState::Down, None),
        (_, Place::Unbound) => (OperState::Unbound, None),
        (_, Place::Unassigned(reason)) => (OperState::Unassigned, Some(reason)),
        (_, Place::Host { host, .. }) => {
            let silent = format!("host {host} does not report");
            if one(OperState::ResourceUnavailable).is_some() {
                let missing = "a device has no port".to_owned();
                (OperState::ResourceUnavailable, Some(missing))
            } else if let Some(refused) = one(OperState::Refused) {
                (OperState::Refused, refused.reason.clone())
            } else if known.reports.is_up(host).is_none_or(|up| up.is_err()) {
                (OperState::Indeterminate, Some(silent))
            } else if let Some(silent) = one(OperState::Indeterminate) {
                (OperState::Indeterminate, silent.reason.clone())
            } else if let Some(busy) = one(OperState::Busy) {
                (OperState::Busy, busy.reason.clone())
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

fn node_status(known: &Known<'_>, name: &str) -> Status {
    // An embedded director is up when its host is.
    let mut hosts = known.model.hosts_of(name);
    let embedding = hosts
        .find(|(_, host)| host.embedded)
        .map(|(host, _)| host.as_str());
    let node = embedding.unwrap_or(name);
    let (oper, reason) = match known.reports.is_up(node) {
        Some(Ok(())) => match known.reports.refused(node) {
            Some(reason) => (OperState::Refused, Some(reason.to_owned())),
            None => (OperState::Up, None),
        },
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
