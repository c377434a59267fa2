//! Commands on a model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use controller_api::objects::Template;
use controller_api::{Action, Change, Command, Fields, Kind, Outcome, Refusal, Verdict};
use serde_json::Value;

use super::item::{self, HasTable, Item};
use super::network::VLAN_MAX;
use super::{Model, Problem, Rendered, diff, ranges, template, with_kind};

/// A model after a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transacted {
    pub(crate) model: Model,
    /// The lab file of each director; empty if nothing changed.
    pub(crate) files: BTreeMap<String, Rendered>,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) changes: Vec<Change>,
}

impl Model {
    /// What the model becomes by `commands`. All of them are right, and their directors take what comes
    /// of them, or it is refused.
    pub(crate) fn transact(&self, commands: &[Command]) -> Result<Transacted, Refusal> {
        let mut model = self.clone();
        let mut outcomes = Vec::with_capacity(commands.len());
        for (index, command) in commands.iter().enumerate() {
            let outcome = model.run(command).map_err(|refusal| Refusal {
                command: Some(index),
                ..refusal
            })?;
            outcomes.push(outcome);
        }
        let changes = diff(self, &model);
        let mut files = BTreeMap::new();
        if !changes.is_empty() {
            let only = (commands.len() == 1).then_some(0);
            files = model.render_all().map_err(|refusal| Refusal {
                command: only,
                ..refusal
            })?;
        }
        Ok(Transacted {
            model,
            files,
            outcomes,
            changes,
        })
    }

    fn run(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let (kind, name) = command.object();
        let old_template = self.template_behind(kind, name);
        let verdict = with_kind!(kind, T => match command {
            Command::Add { fields, .. } => self.add::<T>(name, fields),
            Command::Set { fields, .. } => self.set::<T>(name, fields),
            Command::Put { fields, .. } if T::table(self).contains_key(name) => {
                self.set::<T>(name, fields)
            }
            Command::Put { fields, .. } => self.add::<T>(name, fields),
            Command::Remove { .. } => self.remove::<T>(name),
            Command::Act { action, .. } => self.act(kind, name, action),
        })
        .map_err(|problem| problem.of(kind, name))?;
        let new_template = self.template_behind(kind, name);
        if old_template != new_template {
            self.follow(kind, name, old_template.as_deref(), new_template.as_deref())?;
        }
        Ok(Outcome {
            kind,
            name: name.to_owned(),
            verdict,
        })
    }

    fn add<T: Item>(&mut self, name: &str, fields: &Fields) -> Result<Verdict, Problem> {
        if let Some(before) = T::table(self).get(name).cloned() {
            let mut item = item::merged(&*before, fields)?;
            item.settle(name, Some(&before), self)?;
            if item == *before {
                return Ok(Verdict::Unchanged);
            }
            let (before, after) = (item::fields(&*before), item::fields(&item));
            let differ = fields
                .keys()
                .filter(|field| before.get(*field) != after.get(*field));
            let differ: Vec<_> = differ.map(String::as_str).collect();
            return Err(Problem::conflict(
                format_args!("it exists with another {}", differ.join(", ")),
                "use set to change it, or another name",
            ));
        }
        T::check_name(name)?;
        let mut item = item::merged(&T::default(), fields)?;
        item.settle(name, None, self)?;
        item.check(name, self)?;
        T::table_mut(self).insert(name.to_owned(), Arc::new(item));
        Ok(Verdict::Created)
    }

    fn set<T: Item>(&mut self, name: &str, fields: &Fields) -> Result<Verdict, Problem> {
        let Some(before) = T::table(self).get(name).cloned() else {
            return Err(no_such(<T as HasTable>::KIND));
        };
        let mut item = item::merged(&*before, fields)?;
        item.settle(name, Some(&before), self)?;
        if item == *before {
            return Ok(Verdict::Unchanged);
        }
        item.check(name, self)?;
        T::table_mut(self).insert(name.to_owned(), Arc::new(item));
        Ok(Verdict::Changed)
    }

    fn remove<T: Item>(&mut self, name: &str) -> Result<Verdict, Problem> {
        if !T::table(self).contains_key(name) {
            return Err(no_such(<T as HasTable>::KIND));
        }
        if let Some(user) = T::user(name, self) {
            return Err(Problem::conflict(
                format_args!("it is used by {user}"),
                format_args!("change {user} first"),
            ));
        }
        T::removing(name, self);
        T::table_mut(self).remove(name);
        Ok(Verdict::Removed)
    }

    fn act(&mut self, kind: Kind, name: &str, action: &Action) -> Result<Verdict, Problem> {
        let text = |field: &str, value: &str| {
            Fields::from_iter([(field.to_owned(), Value::String(value.to_owned()))])
        };
        match (kind, action) {
            (Kind::Vnic, Action::AddAllowedVlans { vlans }) => {
                let mut allowed = self.allowed_vlans(name)?;
                allowed.extend(ranges::parse(vlans, 1, VLAN_MAX)?);
                let fields = text("allowed-vlans", &ranges::text(&allowed));
                self.set::<controller_api::objects::Vnic>(name, &fields)
            }
            (Kind::Vnic, Action::RemoveAllowedVlans { vlans }) => {
                let mut allowed = self.allowed_vlans(name)?;
                if allowed.is_empty() {
                    allowed.extend(1..=VLAN_MAX);
                }
                for vlan in ranges::parse(vlans, 1, VLAN_MAX)? {
                    allowed.remove(&vlan);
                }
                if allowed.is_empty() {
                    return Err(Problem::invalid(
                        "no VLAN would be left",
                        "use -mode=access, or set vnic down",
                    ));
                }
                let fields = text("allowed-vlans", &ranges::text(&allowed));
                self.set::<controller_api::objects::Vnic>(name, &fields)
            }
            (Kind::Vnic, Action::Switchover) => {
                let Some(vnic) = self.vnics.get_mut(name) else {
                    return Err(no_such(kind));
                };
                if vnic.ha.is_empty() {
                    return Err(Problem::invalid(
                        "it has no other port to switch to",
                        format_args!("set vnic {name} -ha=SLOT/PORT first"),
                    ));
                }
                let vnic = Arc::make_mut(vnic);
                vnic.switched = !vnic.switched;
                Ok(Verdict::Changed)
            }
            (Kind::ServerProfile, Action::ApplyTemplate { template }) => {
                let fields = text("template", template);
                self.set::<controller_api::objects::ServerProfile>(name, &fields)
            }
            _ => Err(Problem::invalid(
                format_args!("a {kind} cannot do that"),
                "see help for what it can",
            )),
        }
    }

    /// The VLANs of a trunk; empty: all.
    fn allowed_vlans(&self, name: &str) -> Result<BTreeSet<u16>, Problem> {
        let vnic = self.vnics.get(name).ok_or_else(|| no_such(Kind::Vnic))?;
        match vnic.allowed_vlans.as_str() {
            "" => Ok(BTreeSet::new()),
            text => ranges::parse(text, 1, VLAN_MAX),
        }
    }

    /// The template that an object is, or follows.
    fn template_behind(&self, kind: Kind, name: &str) -> Option<Arc<Template>> {
        let template = match kind {
            Kind::Template => name,
            Kind::ServerProfile => self.server_profiles.get(name)?.template.as_str(),
            _ => return None,
        };
        self.templates.get(template).cloned()
    }

    /// Has profiles follow a template that was changed, or chosen.
    fn follow(
        &mut self,
        kind: Kind,
        name: &str,
        before: Option<&Template>,
        after: Option<&Template>,
    ) -> Result<(), Refusal> {
        let profiles: Vec<String> = match kind {
            Kind::Template => {
                let all = self.server_profiles.iter();
                let following = all.filter(|(_, profile)| profile.template == name);
                following.map(|(profile, _)| profile.clone()).collect()
            }
            _ => vec![name.to_owned()],
        };
        // A profile that is gone took its devices along.
        let there = profiles
            .iter()
            .filter(|name| self.server_profiles.contains_key(*name));
        let there: Vec<_> = there.cloned().collect();
        for profile in there {
            for (kind, name, fields) in template::consequences(self, &profile, before, after) {
                let refused = |problem: Problem| problem.of(kind, &name);
                let Some(fields) = fields else {
                    with_kind!(kind, T => self.remove::<T>(&name)).map_err(refused)?;
                    continue;
                };
                with_kind!(kind, T => match T::table(self).contains_key(&name) {
                    true => self.set::<T>(&name, &fields),
                    false => self.add::<T>(&name, &fields),
                })
                .map_err(refused)?;
                template::mark(self, kind, &name)?;
            }
        }
        Ok(())
    }
}

/// There is nothing of that name.
pub(crate) fn no_such(kind: Kind) -> Problem {
    Problem::not_found("it does not exist", format_args!("see show {kind}"))
}
