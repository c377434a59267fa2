//! Tests of the target as an initiator sees it, through `ItNexus::execute`.

mod adversarial;
mod block_commands;
mod discovery;
mod mode_pages;
mod model;
mod ram_device;
mod sharing;
