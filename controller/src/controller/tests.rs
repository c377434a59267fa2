//! What was answered is kept, as a whole.

use controller_api::Fields;
use serde_json::{Value, json};

use super::*;
use crate::store::{MemoryStore, RedbStore};

fn fields(value: Value) -> Fields {
    value.as_object().cloned().unwrap()
}

fn add(kind: Kind, name: &str, value: Value) -> Command {
    Command::Add {
        kind,
        name: name.to_owned(),
        fields: fields(value),
    }
}

fn set(kind: Kind, name: &str, value: Value) -> Command {
    Command::Set {
        kind,
        name: name.to_owned(),
        fields: fields(value),
    }
}

fn root() -> Caller {
    Caller::administrator("root")
}

fn with(controller: &Controller, commands: Vec<Command>) -> Result<Done, Refusal> {
    let request = Transaction {
        commands,
        ..Transaction::default()
    };
    controller.transact(&root(), &request)
}

fn start() -> Controller {
    Controller::start(Box::new(MemoryStore::default())).unwrap()
}

fn with_profile() -> Controller {
    let controller = start();
    let commands = vec![
        add(Kind::ServerProfile, "s1", json!({})),
        add(Kind::Vnic, "vn01.s1", json!({"if": "10/1"})),
    ];
    with(&controller, commands).unwrap();
    controller
}

#[test]
fn a_controller_that_starts_again_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let store = RedbStore::open(&folder.path().join("controller.redb")).unwrap();
        Controller::start(Box::new(store)).unwrap()
    };
    let controller = open();
    with(&controller, vec![add(Kind::ServerProfile, "s1", json!({}))]).unwrap();
    with(
        &controller,
        vec![add(Kind::Vnic, "vn01.s1", json!({"if": "10/1"}))],
    )
    .unwrap();
    let before = controller.export(&root()).unwrap();
    drop(controller);
    let controller = open();
    assert_eq!(controller.export(&root()).unwrap(), before);
    assert_eq!(controller.system(&root()).revision, 3);
}

#[test]
fn a_transaction_with_one_wrong_command_changes_nothing() {
    let controller = start();
    let before = controller.export(&root()).unwrap();
    let commands = vec![
        add(Kind::ServerProfile, "s1", json!({})),
        add(Kind::Vnic, "vn01.s1", json!({"if": "16/1"})),
    ];
    let refusal = with(&controller, commands).unwrap_err();
    assert_eq!(refusal.command, Some(1));
    assert_eq!(refusal.object, "vnic vn01.s1");
    assert!(refusal.problem.contains("16/1"), "{refusal}");
    assert_eq!(controller.export(&root()).unwrap(), before);
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let controller = with_profile();
    let before = controller.export(&root()).unwrap();
    let request = Transaction {
        commands: vec![set(Kind::Vnic, "vn01.s1", json!({"mtu": 9000}))],
        dry_run: true,
        ..Transaction::default()
    };
    let done = controller.transact(&root(), &request).unwrap();
    let [change] = done.changes.as_slice() else {
        panic!("{done:?}")
    };
    let fields = change.fields();
    assert_eq!(fields.len(), 1);
    assert_eq!((fields[0].field, fields[0].after), ("mtu", &json!(9000)));
    assert_eq!(controller.export(&root()).unwrap(), before);
}

#[test]
fn undo_takes_back_one_change_after_the_other() {
    let controller = with_profile();
    let mac = |controller: &Controller| {
        controller
            .get(&root(), Kind::Vnic, "vn01.s1")
            .map(|view| view.fields["mac"].clone())
    };
    let (before, address) = (
        controller.export(&root()).unwrap(),
        mac(&controller).unwrap(),
    );
    with(
        &controller,
        vec![set(Kind::Vnic, "vn01.s1", json!({"mtu": 9000}))],
    )
    .unwrap();
    let remove = Command::Remove {
        kind: Kind::ServerProfile,
        name: "s1".to_owned(),
    };
    with(&controller, vec![remove]).unwrap();
    assert!(mac(&controller).is_err());
    controller.undo(&root(), &Undo::default()).unwrap();
    // The device is another life of the same NIC: its address is the same, its number is not.
    assert_eq!(mac(&controller).unwrap(), address);
    controller.undo(&root(), &Undo::default()).unwrap();
    let now = controller.export(&root()).unwrap();
    let (old, new) = (
        &before.objects[&Kind::Vnic]["vn01.s1"],
        &now.objects[&Kind::Vnic]["vn01.s1"],
    );
    assert_ne!(old["id"], new["id"]);
    assert_eq!(old["mac"], new["mac"]);
    assert!(!new.contains_key("mtu"));
    controller.undo(&root(), &Undo::default()).unwrap();
    assert!(mac(&controller).is_err());
    let refusal = controller.undo(&root(), &Undo::default()).unwrap_err();
    assert!(
        refusal.problem.contains("nothing to take back"),
        "{refusal}"
    );
}

#[test]
fn p10_every_change_is_in_the_log_with_its_user_time_and_words() {
    let controller = with_profile();
    let request = one(
        set(Kind::Vnic, "vn01.s1", json!({"mtu": 9000})),
        "set vnic vn01.s1 -mtu=9000",
    );
    controller.transact(&root(), &request).unwrap();
    let log = controller.audit(&root(), u64::MAX).unwrap();
    assert_eq!(log[0].user, "root");
    assert_eq!(log[0].note, "set vnic vn01.s1 -mtu=9000");
    assert!(
        log[0].time.starts_with("20") && log[0].time.ends_with('Z'),
        "{}",
        log[0].time
    );
    assert_eq!(
        log.iter().map(|entry| entry.revision).collect::<Vec<_>>(),
        [3, 2, 1]
    );
}

#[test]
fn roles_change_only_what_is_theirs() {
    let controller = with_profile();
    with(
        &controller,
        vec![
            add(Kind::User, "nora", json!({"role": "network"})),
            add(Kind::User, "otto", json!({"role": "operators"})),
            add(
                Kind::RoleMapping,
                "away",
                json!({"group": "former", "role": "noaccess"}),
            ),
        ],
    )
    .unwrap();
    let request = one(set(Kind::Vnic, "vn01.s1", json!({"mtu": 9000})), "");
    let nora = controller.caller("nora", &[]);
    controller.transact(&nora, &request).unwrap();
    let profile = one(add(Kind::ServerProfile, "s2", json!({})), "");
    let refused = |caller: &Caller, request| controller.transact(caller, request).unwrap_err().code;
    assert_eq!(refused(&nora, &profile), RefusalCode::Forbidden);
    let otto = controller.caller("otto", &[]);
    assert_eq!(refused(&otto, &request), RefusalCode::Forbidden);
    assert!(controller.list(&otto, Kind::Vnic, "*").is_ok());
    let former = controller.caller("nora", &["former".to_owned()]);
    assert!(controller.list(&former, Kind::Vnic, "*").is_err());
    let stranger = controller.caller("eve", &[]);
    assert!(controller.list(&stranger, Kind::Vnic, "*").is_err());
}

#[test]
fn listeners_are_told_of_changes_and_of_states() {
    let controller = with_profile();
    let mut events = controller.events();
    with(
        &controller,
        vec![
            add(
                Kind::Director,
                "d1",
                json!({"listen": ["tcp:127.0.0.1:7471"]}),
            ),
            add(Kind::Iocard, "10", json!({})),
            add(Kind::Host, "h1", json!({})),
            set(Kind::ServerProfile, "s1", json!({"server": "vm1@h1"})),
        ],
    )
    .unwrap();
    assert!(matches!(
        events.try_recv(),
        Ok(Event::Changed { revision: 3, .. })
    ));
    let desired = controller.desired().borrow().clone();
    let report = |node: &str, devices: &[&str]| {
        controller.report(node, Node::of(desired.of(node).unwrap(), devices));
    };
    let mut state = || match events.try_recv() {
        Ok(Event::State { name, status, .. }) => (name, status.state.unwrap()),
        other => panic!("no state: {other:?}"),
    };
    report("h1", &[]);
    report("h1", &["vn01.s1"]);
    // Its director has not said yet that it knows the vNIC.
    let name = "vn01.s1".to_owned();
    report("d1", &[]);
    assert_eq!(state(), (name, "up/up".to_owned()));
    let view = controller.get(&root(), Kind::ServerProfile, "s1").unwrap();
    assert_eq!(view.status.state.as_deref(), Some("up/up"));
}

#[test]
fn patterns_have_stars() {
    for (pattern, name, expected) in [
        ("*", "vn01.server1", true),
        ("*.server1", "vn01.server1", true),
        ("*.*test*", "vn01.mytest2", true),
        ("vn*.s*1", "vn01.server1", true),
        ("vn01.server1", "vn01.server1", true),
        ("vn01", "vn01.server1", false),
        ("*a*a*", "a", false),
        ("VN*", "vn01.server1", false),
    ] {
        assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
    }
}
