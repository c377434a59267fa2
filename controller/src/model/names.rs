//! Names of objects.

use super::Problem;

/// Bytes of a profile's name at most, as on the original's wire.
const PROFILE_BYTES_MAX: usize = 31;
/// Bytes of a device's own name at most, as on the original's wire.
const DEVICE_BYTES_MAX: usize = 15;
/// Bytes of any other name at most.
const BYTES_MAX: usize = fabric_config::NAME_BYTES_MAX;
/// Bytes of the name of a physical server at most.
const SERVER_BYTES_MAX: usize = 127;

/// A name without a structure.
pub(crate) fn plain(name: &str) -> Result<(), Problem> {
    word(name, BYTES_MAX)
}

/// The name of a profile.
pub(crate) fn profile(name: &str) -> Result<(), Problem> {
    word(name, PROFILE_BYTES_MAX)
}

/// The name of a device in a template: without its profile.
pub(crate) fn device_alone(name: &str) -> Result<(), Problem> {
    word(name, DEVICE_BYTES_MAX)
}

/// `device.profile`.
pub(crate) fn device(name: &str) -> Result<(), Problem> {
    let Some((device, of)) = name.split_once('.') else {
        return Err(Problem::invalid(
            format_args!("{name:?} has no profile"),
            "write it like vn01.server1",
        ));
    };
    device_alone(device)?;
    profile(of)
}

/// The profile of a device.
pub(crate) fn profile_of(device: &str) -> &str {
    device.split_once('.').map_or("", |(_, profile)| profile)
}

/// `set/name` of a policy.
pub(crate) fn policy(name: &str) -> Result<qos::PolicyName, Problem> {
    name.parse()
        .map_err(|error: qos::PolicyError| Problem::from_text(&error))
}

/// `server@where`.
pub(crate) fn physical_server(name: &str) -> Result<(), Problem> {
    let usable = name.len() <= SERVER_BYTES_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.@:".contains(&byte))
        && name
            .split_once('@')
            .is_some_and(|(server, at)| !server.is_empty() && !at.is_empty() && !at.contains('@'));
    if usable {
        return Ok(());
    }
    Err(Problem::invalid(
        format_args!("{name:?} is no physical server"),
        "write it like vm1@host1",
    ))
}

fn word(name: &str, most: usize) -> Result<(), Problem> {
    let usable = (1..=most).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if usable {
        return Ok(());
    }
    Err(Problem::invalid(
        format_args!("name {name:?} is not usable"),
        format_args!("use 1 to {most} letters, digits, '-' and '_'"),
    ))
}
