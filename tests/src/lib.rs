//! What the test suites share. The suites themselves are in `tests/`.
//!
//! [`front_end`] is a guest without QEMU: a vhost-user front end with guest memory and the
//! driver's side of the rings, fast enough for tests in milliseconds and hostile on request.
//! [`devices`] are the drivers on top of it, [`fabric`] is the other end of their lanes, right or
//! hostile. [`impairment`] stands between two ends of a link and spoils it. [`lab`] is the real
//! thing: director, host agents and guests in a network namespace; [`failover`] a guest at work
//! there, whose links break. [`integrity`] knows what a LUN must hold. [`simulation`] are whole fabrics in virtual time. [`tgt`] is an iSCSI target by
//! others.

pub mod devices;
pub mod fabric;
pub mod failover;
pub mod front_end;
pub mod impairment;
pub mod integrity;
pub mod lab;
pub mod simulation;
pub mod tgt;
