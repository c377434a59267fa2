//! The folder as an operator finds it.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn authority_in_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path()).unwrap();
    folder
}

#[test]
fn ca_is_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("not/there/yet");
    init(&dir).unwrap();
    assert_eq!(mode(&dir.join("ca.key")), 0o600);
    let before = std::fs::read(dir.join("ca.key")).unwrap();
    let error = init(&dir).unwrap_err();
    assert!(matches!(error, PkiError::Exists { .. }));
    assert!(error.to_string().contains("another --dir"));
    // Half a CA is none to overwrite either.
    std::fs::remove_file(dir.join("ca.pem")).unwrap();
    assert!(matches!(init(&dir), Err(PkiError::Exists { .. })));
    assert_eq!(std::fs::read(dir.join("ca.key")).unwrap(), before);
}

#[test]
fn certificate_says_what_was_ordered() {
    let folder = authority_in_folder();
    let order = Order {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ..Order::new("host_1", 30)
    };
    let issued = issue(folder.path(), &order).unwrap();
    assert_eq!(mode(&issued.key), 0o600);
    let [described] = &show(&issued.cert).unwrap()[..] else {
        panic!("one certificate")
    };
    assert_eq!(described.names, ["host_1"]);
    assert_eq!(described.addresses, order.addresses);
    let now = OffsetDateTime::now_utc();
    for (hours, valid) in [(-2, false), (0, true), (29 * 24, true), (31 * 24, false)] {
        assert_eq!(described.is_valid_at(now + Duration::hours(hours)), valid);
    }
    let ca = show(&folder.path().join("ca.pem")).unwrap();
    assert_eq!(ca[0].names, std::slice::from_ref(&described.issuer));
    assert!(described.to_string().contains("(29 days left)"));
    // Nothing else is left in the folder.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn certificate_is_replaced_with_its_key() {
    let folder = authority_in_folder();
    let issued = issue(folder.path(), &Order::new("host1", 1)).unwrap();
    let before = (
        show(&issued.cert).unwrap(),
        std::fs::read(&issued.key).unwrap(),
    );
    assert_eq!(
        issue(folder.path(), &Order::new("host1", 1)).unwrap(),
        issued
    );
    assert_ne!(show(&issued.cert).unwrap(), before.0);
    assert_ne!(std::fs::read(&issued.key).unwrap(), before.1);
    assert_eq!(mode(&issued.key), 0o600);
}

#[test]
fn refusals_name_the_object_and_the_next_step() {
    let folder = authority_in_folder();
    for name in ["", "ca", "a.b", "../x", "-x", "x-", "123", &"x".repeat(64)] {
        let error = issue(folder.path(), &Order::new(name, 1)).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{name}");
    }
    let error = issue(folder.path(), &Order::new("host1", CA_DAYS + 1)).unwrap_err();
    assert!(
        matches!(
            error,
            PkiError::TooLong {
                days_left: 3649,
                ..
            }
        ),
        "{error:?}"
    );
    let error = issue(&folder.path().join("none"), &Order::new("host1", 1)).unwrap_err();
    assert!(error.to_string().contains("orimono-pki init"), "{error}");
    let error = show(&folder.path().join("ca.key")).unwrap_err();
    assert!(error.to_string().contains("name a .pem file"), "{error}");
    let other = authority_in_folder();
    std::fs::copy(other.path().join("ca.key"), folder.path().join("ca.key")).unwrap();
    let error = issue(folder.path(), &Order::new("host1", 1)).unwrap_err();
    assert!(matches!(error, PkiError::NotOneCa { .. }), "{error:?}");
}
