//! The command language of the controller, and who speaks it.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`nouns`] | the one definition: objects, options, subcommands |
//! | [`language`] | lines as statements |
//! | [`session`] | statements done |
//! | [`show`] | tables |
//! | [`client`] | the controller's socket |
//!
//! It knows nothing of the controller but `controller-api`.
#![forbid(unsafe_code)]

pub mod client;
pub mod help;
pub mod language;
pub mod nouns;
pub mod session;
pub mod show;
