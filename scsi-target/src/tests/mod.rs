//! Tests of the target as an initiator sees it, through `ItNexus::execute`.

mod access_states;
mod adversarial;
mod block_commands;
mod cluster_model;
mod copies;
mod discovery;
mod mode_pages;
mod model;
mod ram_device;
mod reservations;
mod sharing;
mod small_commands;
