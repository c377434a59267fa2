//! Models as documents, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use controller_api::{Change, Document, Fields, Kind, Refusal, SCHEMA};

use super::item::{self, HasTable, Item};
use super::transact::Transacted;
use super::{Model, Problem, diff, with_kind};

/// All objects, by kind and name.
type Objects = BTreeMap<Kind, BTreeMap<String, Fields>>;

/// What makes objects of schema `n + 1` from those of schema `n`, for each `n` from 1.
const MIGRATIONS: [fn(&mut Objects); SCHEMA as usize - 1] = [];

/// Counters, which never go back.
const COUNTERS: [&str; 4] = ["next-id", "cursor", "generation", "id"];

/// A document of a schema that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is of schema {schema} and this program knows 1 to {SCHEMA}; use a newer program")]
pub(crate) struct WrongDocument {
    pub(crate) schema: u32,
}

/// Brings objects of an older schema to this one.
pub(crate) fn migrate(schema: u32, objects: &mut Objects) -> Result<(), WrongDocument> {
    if schema == 0 || schema > SCHEMA {
        return Err(WrongDocument { schema });
    }
    let done = usize::try_from(schema)
        .unwrap_or(usize::MAX)
        .saturating_sub(1);
    for migration in MIGRATIONS.iter().skip(done) {
        migration(objects);
    }
    Ok(())
}

impl Model {
    /// All objects.
    pub(crate) fn export(&self) -> Document {
        let mut objects = Objects::new();
        for kind in Kind::ALL {
            let of_kind: BTreeMap<_, _> = with_kind!(*kind, T => {
                let table = T::table(self).iter();
                table.map(|(name, item)| (name.clone(), item::fields(&**item))).collect()
            });
            if !of_kind.is_empty() {
                objects.insert(*kind, of_kind);
            }
        }
        Document {
            schema: SCHEMA,
            objects,
        }
    }

    /// What the model becomes if it is to be what `document` says.
    pub(crate) fn import(&self, document: &Document) -> Result<Transacted, Refusal> {
        let mut objects = document.objects.clone();
        migrate(document.schema, &mut objects)
            .map_err(|error| Problem::from_text(&error).of(Kind::System, "document"))?;
        let mut model = Self::default();
        for (kind, table) in objects {
            for (name, fields) in table {
                with_kind!(kind, T => model.put_whole::<T>(self, &name, fields))?;
            }
        }
        self.verified(model)
    }

    /// What is stored, as it was.
    pub(crate) fn load(objects: Objects) -> Result<Self, Refusal> {
        let mut model = Self::empty();
        for (kind, table) in objects {
            for (name, fields) in table {
                with_kind!(kind, T => {
                    let item: T = item::from_fields(fields).map_err(|wrong| wrong.of(kind, &name))?;
                    T::table_mut(&mut model).insert(name, Arc::new(item));
                });
            }
        }
        Ok(model)
    }

    /// What the model becomes if `changes` are taken back, last first.
    pub(crate) fn revert(&self, changes: &[Change]) -> Result<Transacted, Refusal> {
        let mut model = self.clone();
        for change in changes.iter().rev() {
            let (kind, name) = (change.kind, change.name.as_str());
            let now = self.fields(kind, name);
            if without_counters(now.as_ref()) != without_counters(change.after.as_ref()) {
                return Err(Problem::conflict(
                    "it was changed again since",
                    "take that back first, or change it by hand",
                )
                .of(kind, name));
            }
            match &change.before {
                None => with_kind!(kind, T => drop(T::table_mut(&mut model).remove(name))),
                Some(before) => {
                    let mut fields = before.clone();
                    fields.retain(|field, _| !COUNTERS.contains(&field.as_str()));
                    let counters = now.into_iter().flatten();
                    fields.extend(counters.filter(|(field, _)| COUNTERS.contains(&field.as_str())));
                    with_kind!(kind, T => model.put_whole::<T>(self, name, fields))?;
                }
            }
        }
        self.verified(model)
    }

    fn put_whole<T: Item>(
        &mut self,
        before: &Self,
        name: &str,
        fields: Fields,
    ) -> Result<(), Refusal> {
        let refused = |problem: Problem| problem.of(<T as HasTable>::KIND, name);
        T::check_name(name).map_err(refused)?;
        let mut item: T = item::from_fields(fields).map_err(refused)?;
        let before = T::table(before).get(name).map(|item| &**item);
        item.settle(name, before, self).map_err(refused)?;
        T::table_mut(self).insert(name.to_owned(), Arc::new(item));
        Ok(())
    }

    /// Checks a model whose objects were not put there by commands, each and all together.
    fn verified(&self, model: Self) -> Result<Transacted, Refusal> {
        for kind in Kind::ALL {
            with_kind!(*kind, T => {
                for (name, item) in T::table(&model) {
                    item.check(name, &model).map_err(|wrong| wrong.of(*kind, name))?;
                }
            });
        }
        let mut ids = BTreeMap::new();
        let vnics = model
            .vnics
            .iter()
            .map(|(name, vnic)| (vnic.id, Kind::Vnic, name));
        let vhbas = model
            .vhbas
            .iter()
            .map(|(name, vhba)| (vhba.id, Kind::Vhba, name));
        for (id, kind, name) in vnics.chain(vhbas) {
            if let Some(other) = ids.insert(id, name) {
                let wrong = format_args!("id {id} is that of {other}").to_string();
                return Err(Problem::conflict(wrong, "leave it out of one of them").of(kind, name));
            }
        }
        Ok(Transacted {
            files: model.render_all()?,
            changes: diff(self, &model),
            model,
            outcomes: Vec::new(),
        })
    }
}

fn without_counters(fields: Option<&Fields>) -> Option<Fields> {
    let mut fields = fields?.clone();
    fields.retain(|field, _| !COUNTERS.contains(&field.as_str()));
    Some(fields)
}
