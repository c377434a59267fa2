//! What all kinds of objects have in common.

use controller_api::{Fields, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::names;
use super::{Model, Problem, Table};

/// Where the objects of a kind are.
pub(crate) trait HasTable: Sized {
    /// The kind.
    const KIND: Kind;

    /// Its objects.
    fn table(model: &Model) -> &Table<Self>;
    /// Its objects.
    fn table_mut(model: &mut Model) -> &mut Table<Self>;
}

/// A kind of objects; one file beside this one says what is right for each.
pub(crate) trait Item:
    HasTable + Serialize + DeserializeOwned + Clone + Default + PartialEq
{
    /// Fields that only the controller changes.
    const KEPT: &'static [&'static str] = &[];

    /// Whether an object may have this name.
    fn check_name(name: &str) -> Result<(), Problem> {
        names::plain(name)
    }

    /// Writes values in their one form and fills in what the controller chooses.
    fn settle(
        &mut self,
        _name: &str,
        _before: Option<&Self>,
        _model: &mut Model,
    ) -> Result<(), Problem> {
        Ok(())
    }

    /// Whether its values are right and what it refers to is there.
    fn check(&self, name: &str, model: &Model) -> Result<(), Problem>;

    /// What refers to an object, so that it cannot go.
    fn user(_name: &str, _model: &Model) -> Option<String> {
        None
    }

    /// Takes along what belongs to an object that goes.
    fn removing(_name: &str, _model: &mut Model) {}
}

/// All fields of an object, defaults too.
pub(crate) fn all_fields<T: Item>(item: &T) -> Fields {
    match serde_json::to_value(item) {
        Ok(Value::Object(fields)) => fields,
        _ => Fields::new(),
    }
}

/// The fields of an object that are not the default: what is stored, exported and compared.
pub(crate) fn fields<T: Item>(item: &T) -> Fields {
    let default = all_fields(&T::default());
    let mut fields = all_fields(item);
    fields.retain(|name, value| default.get(name) != Some(value));
    fields
}

/// Reads an object from its fields.
pub(crate) fn from_fields<T: Item>(fields: Fields) -> Result<T, Problem> {
    serde_json::from_value(Value::Object(fields)).map_err(|error| {
        Problem::invalid(
            error.to_string().replace('\n', " "),
            format_args!("see the fields of {} in the reference", T::KIND),
        )
    })
}

/// `item` with changes merged into it (RFC 7396).
pub(crate) fn merged<T: Item>(item: &T, changes: &Fields) -> Result<T, Problem> {
    if let Some(field) = changes
        .keys()
        .find(|field| T::KEPT.contains(&field.as_str()))
    {
        return Err(Problem::invalid(
            format_args!("{field} is kept by the controller"),
            "leave it out",
        ));
    }
    let mut fields = all_fields(item);
    merge(&mut fields, changes);
    from_fields(fields)
}

fn merge(into: &mut Fields, changes: &Fields) {
    for (name, change) in changes {
        match (into.get_mut(name), change) {
            (_, Value::Null) => {
                into.remove(name);
            }
            (Some(Value::Object(inner)), Value::Object(changes)) => merge(inner, changes),
            (_, Value::Object(changes)) => {
                let mut inner = Fields::new();
                merge(&mut inner, changes);
                into.insert(name.clone(), Value::Object(inner));
            }
            (_, value) => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}
