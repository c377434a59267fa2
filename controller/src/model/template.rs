//! Templates, and the profiles that follow them.

use std::collections::BTreeMap;

use controller_api::objects::{Template, Vhba, Vnic};
use controller_api::{Fields, Kind, Refusal};
use serde_json::Value;

use super::item::Item;
use super::{Model, Problem, item, names};

impl Item for Template {
    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        check_devices::<Vnic>(&self.vnics)?;
        check_devices::<Vhba>(&self.vhbas)
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut profiles = model.server_profiles.iter();
        let user = profiles.find(|(_, profile)| profile.template == name);
        user.map(|(profile, _)| format!("server-profile {profile}"))
    }
}

/// Refuses fields that no device has. Whether their values are right turns out where they are used.
fn check_devices<T: Item>(devices: &BTreeMap<String, Fields>) -> Result<(), Problem> {
    for (name, fields) in devices {
        names::device_alone(name)?;
        item::merged(&T::default(), fields)?;
    }
    Ok(())
}

/// A device of a profile and the fields of it that are to change.
type Wanted = Vec<(Kind, String, Option<Fields>)>;

/// What a change of a template from `before` to `after` means for a profile that follows it: fields to
/// put, or no fields for a device to remove.
pub(super) fn consequences(
    model: &Model,
    profile: &str,
    before: Option<&Template>,
    after: Option<&Template>,
) -> Wanted {
    let none = BTreeMap::new();
    let of = |template: Option<&'_ Template>, kind| match (template, kind) {
        (Some(template), Kind::Vnic) => template.vnics.clone(),
        (Some(template), _) => template.vhbas.clone(),
        (None, _) => none.clone(),
    };
    let mut wanted = Wanted::new();
    for kind in [Kind::Vnic, Kind::Vhba] {
        let (before, after) = (of(before, kind), of(after, kind));
        for device in before.keys().filter(|device| !after.contains_key(*device)) {
            let name = format!("{device}.{profile}");
            if made_by_template(model, kind, &name) {
                wanted.push((kind, name, None));
            }
        }
        for (device, fields) in after {
            let name = format!("{device}.{profile}");
            let known = made_by_template(model, kind, &name);
            let before = before
                .get(&device)
                .filter(|_| known)
                .cloned()
                .unwrap_or_default();
            wanted.push((kind, name, Some(difference(&before, &fields))));
        }
    }
    wanted
}

fn made_by_template(model: &Model, kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Vnic => model.vnics.get(name).is_some_and(|vnic| vnic.from_template),
        _ => model.vhbas.get(name).is_some_and(|vhba| vhba.from_template),
    }
}

/// What turns `before` into `after` when it is merged (RFC 7396).
fn difference(before: &Fields, after: &Fields) -> Fields {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let new = after
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value));
    gone.chain(new.map(|(name, value)| (name.clone(), value.clone())))
        .collect()
}

impl Model {
    /// The fields of a device that are not as its profile's template says.
    pub(crate) fn drift(&self, kind: Kind, name: &str) -> Vec<String> {
        let profile = self.server_profiles.get(names::profile_of(name));
        let template = profile.and_then(|profile| self.templates.get(&profile.template));
        let device = name.split('.').next().unwrap_or_default();
        let (Some(template), true) = (template, made_by_template(self, kind, name)) else {
            return Vec::new();
        };
        let said = match kind {
            Kind::Vnic => template.vnics.get(device),
            _ => template.vhbas.get(device),
        };
        let (Some(said), Some(is)) = (said, self.all_fields(kind, name)) else {
            return Vec::new();
        };
        let differs = |(field, value): &(&String, &Value)| is.get(*field) != Some(*value);
        said.iter()
            .filter(differs)
            .map(|(field, _)| field.clone())
            .collect()
    }
}

/// Marks a device as the template's.
pub(super) fn mark(model: &mut Model, kind: Kind, name: &str) -> Result<(), Refusal> {
    let marked = match kind {
        Kind::Vnic => model.vnics.get_mut(name).map(|vnic| {
            std::sync::Arc::make_mut(vnic).from_template = true;
        }),
        _ => model.vhbas.get_mut(name).map(|vhba| {
            std::sync::Arc::make_mut(vhba).from_template = true;
        }),
    };
    marked.ok_or_else(|| Problem::not_found("it is not there", "try again").of(kind, name))
}
