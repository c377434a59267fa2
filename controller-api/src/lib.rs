//! What is said between the controller and those who ask it: objects, requests, replies, states.
//!
//! Types only. Texts are as the command language writes them (`vn01.server1`, `10/1`, `250m`); whether
//! one is right is for the controller to say. Fields are written in kebab-case, as options are.
//!
//! | path below [`PREFIX`] | method | body, reply |
//! | --- | --- | --- |
//! | `transactions` | POST | [`Transaction`], [`Done`] |
//! | `objects/KIND` | GET | list of [`View`]; `?name=PATTERN` with `*` |
//! | `objects/KIND/NAME` | GET, POST, PATCH, DELETE | [`View`]; fields, [`Done`] |
//! | `undo` | POST | [`Undo`], [`Done`] |
//! | `audit` | GET | list of [`AuditEntry`], oldest first |
//! | `alarms` | GET | list of [`Alarm`] |
//! | `export` | GET | [`Document`] |
//! | `import` | POST | [`Import`], [`Done`] |
//! | `events` | GET | server-sent [`Event`]s |
//! | `system` | GET | [`SystemInfo`] |
//!
//! An answer other than 200 has a [`Refusal`].
#![forbid(unsafe_code)]

mod kind;
pub mod objects;
mod reply;
mod request;
mod role;
mod state;

pub use kind::{Kind, UnknownKind};
pub use reply::{
    Alarm, AuditEntry, Change, Done, Event, FieldChange, Outcome, Refusal, RefusalCode, SystemInfo,
    Verdict, View,
};
pub use request::{Action, Command, Document, Import, Transaction, Undo};
pub use role::Role;
pub use state::{AdminState, OperState, Status};

/// Before the path of every request; changes when old clients can no longer be understood.
pub const PREFIX: &str = "/v1/";
/// Where the controller listens unless it is told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/orimono/controller.sock";
/// A request header: the user that an administrator acts for.
pub const AS_USER: &str = "x-orimono-user";
/// What the model of a [`Document`] looks like; older ones are migrated.
pub const SCHEMA: u32 = 1;

/// Fields of an object, by name.
pub type Fields = serde_json::Map<String, serde_json::Value>;
