//! The command language of the controller, and who speaks it.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`nouns`] | the one definition: objects, options, subcommands |
//! | [`language`] | lines as statements |
//! | [`session`] | statements done |
//! | [`show`] | tables |
//! | [`client`] | the controller's socket |
//! | [`complete`] | what may come next in a line |
//! | [`manual`] | completions of shells, man page |
//! | [`plan`] | what a site takes |
//!
//! It knows nothing of the controller but `controller-api`.
#![forbid(unsafe_code)]

pub mod client;
pub mod complete;
pub mod help;
pub mod language;
pub mod manual;
pub mod nouns;
pub mod plan;
pub mod session;
pub mod show;
