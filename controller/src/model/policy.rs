//! Rates by name, and who uses them.

use controller_api::objects::{Attachment, Policy};
use qos::policy::{DEFAULT_SET, PolicyRate, parse_burst_bytes};
use qos::{BitRate, DeviceRate, PolicyCatalog, PolicyKind};
use serde::{Deserialize, Serialize};

use super::item::Item;
use super::{Model, Problem, names};

/// Policies of vNICs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct QosNetwork(pub(crate) Policy);

/// Policies of vHBAs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct QosSan(pub(crate) Policy);

/// A rate as the command language writes it; `None` for an empty text.
pub(crate) fn rate(text: &str) -> Result<Option<BitRate>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let rate: Result<PolicyRate, _> = text.parse();
    rate.map(|rate| Some(rate.0))
        .map_err(|error| Problem::from_text(&error))
}

/// Checks a rate and writes it in its one form.
pub(crate) fn settle_rate(text: &mut String) -> Result<(), Problem> {
    *text = rate(text)?
        .map(|rate| PolicyRate(rate).to_string())
        .unwrap_or_default();
    Ok(())
}

/// A burst as the command language writes it, in bytes; 0 for an empty text.
pub(crate) fn burst(text: &str) -> Result<u32, Problem> {
    match text {
        "" => Ok(0),
        text => parse_burst_bytes(text).map_err(|error| Problem::from_text(&error)),
    }
}

fn settle(policy: &mut Policy) -> Result<(), Problem> {
    settle_rate(&mut policy.cir)?;
    settle_rate(&mut policy.pir)
}

fn check(policy: &Policy) -> Result<(), Problem> {
    let rate = DeviceRate {
        cir: rate(&policy.cir)?.unwrap_or(BitRate::ZERO),
        cbs_bytes: burst(&policy.cbs)?,
        pir: rate(&policy.pir)?,
        pbs_bytes: burst(&policy.pbs)?,
        weight: policy.weight,
        ..DeviceRate::default()
    };
    rate.validate()
        .map_err(|error| Problem::invalid(error, "raise pir, lower cir, or leave pir out"))
}

fn check_name(name: &str) -> Result<(), Problem> {
    let name = names::policy(name)?;
    if name.set() == DEFAULT_SET {
        return Err(Problem::invalid(
            format_args!("set {DEFAULT_SET} is predefined"),
            "use a set of your own",
        ));
    }
    Ok(())
}

fn uses(attachments: [&Attachment; 2], policy: &str) -> bool {
    attachments
        .iter()
        .any(|attachment| attachment.policer == policy)
}

/// Writes an attachment in its one form: nothing cannot be disabled.
pub(crate) fn settle_attachment(attachment: &mut Attachment) {
    if attachment.policer == "none" {
        attachment.policer.clear();
    }
    attachment.disabled &= !attachment.policer.is_empty();
}

/// Whether what a device refers to is there.
pub(crate) fn check_attachment(
    attachment: &Attachment,
    kind: PolicyKind,
    model: &Model,
) -> Result<(), Problem> {
    let text = &attachment.policer;
    if text.is_empty() {
        return Ok(());
    }
    let name = names::policy(text)?;
    let own = match kind {
        PolicyKind::Network => model.qos_network.contains_key(text),
        PolicyKind::San => model.qos_san.contains_key(text),
    };
    if own {
        return Ok(());
    }
    PolicyCatalog::default()
        .find(kind, &name)
        .map(|_rate| ())
        .map_err(|error| Problem::not_found(error, "add it with add qos, or use one of these"))
}

impl Item for QosNetwork {
    fn check_name(name: &str) -> Result<(), Problem> {
        check_name(name)
    }

    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        settle(&mut self.0)
    }

    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        check(&self.0)
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut vnics = model.vnics.iter();
        let user = vnics.find(|(_, vnic)| uses([&vnic.ingress_qos, &vnic.egress_qos], name));
        user.map(|(user, _)| format!("vnic {user}"))
    }
}

impl Item for QosSan {
    fn check_name(name: &str) -> Result<(), Problem> {
        check_name(name)
    }

    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        settle(&mut self.0)
    }

    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        check(&self.0)
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut vhbas = model.vhbas.iter();
        let user = vhbas.find(|(_, vhba)| uses([&vhba.ingress_qos, &vhba.egress_qos], name));
        user.map(|(user, _)| format!("vhba {user}"))
    }
}
