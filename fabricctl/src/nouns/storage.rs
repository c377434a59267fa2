//! Logical units, masks and maps.

use controller_api::Kind;
use serde_json::Value;

use super::{
    DESCR, Effect, Form, Noun, PLAIN, Subcommand, Verb, flag, number, opt, set_inner, text,
};
use crate::language::Operation;

pub(super) const LUN: Noun = Noun {
    kind: Kind::Lun,
    names: &[&["lun"]],
    about: "a logical unit behind a SAN port",
    example: "data 4/1 -file=/srv/data.img",
    positional: Some(("PORT", "port")),
    options: &[
        text("port", &["port"], "the SAN port"),
        text("file", &["file"], "a raw file"),
        text("block-device", &["block-device"], "a block device"),
        text("qcow2", &["qcow2"], "a qcow2 image"),
        text("ram", &["ram"], "memory, like 64M"),
        text("null", &["null"], "reads zeroes, like 1G"),
        text("sg", &["sg"], "a SCSI generic device"),
        text("iscsi", &["iscsi"], "an iSCSI target"),
        text("portal", &["portal"], "where the target listens"),
        number("target-lun", &["target-lun"], "the number at the target"),
        text("initiator", &["initiator"], "our name to the target"),
        text("user", &["user"], "the account at the target"),
        text(
            "secret-file",
            &["secret-file"],
            "the file that is its secret",
        ),
        flag("direct", &["direct"], "past the page cache"),
        number("block-bytes", &["block-bytes"], "512 or 4096"),
        flag("read-only", &["read-only"], "may only be read"),
        text("serial", &["serial"], "its serial number"),
        DESCR,
    ],
    columns: &["name", "port", "medium", "read-only", "descr"],
    ..PLAIN
};

pub(super) const LUN_MASK: Noun = Noun {
    kind: Kind::LunMask,
    names: &[&["san", "lun-mask"], &["lun-mask"]],
    about: "what vHBAs with it see",
    example: "maskA -lun=0:data,1:logs",
    options: &[opt("lun", &["luns"], Form::Luns, "LUNs by number"), DESCR],
    columns: &["name", "luns", "descr"],
    parts: &[("luns", "luns")],
    ..PLAIN
};

pub(super) const SAN_MAP: Noun = Noun {
    kind: Kind::SanMap,
    names: &[&["san", "map"], &["san-map"]],
    about: "the order of targets of vHBAs",
    example: "arrayA entry 0 50:06:01:60:41:e0:12:34",
    options: &[DESCR],
    subcommands: &[
        Subcommand {
            verb: Verb::Add,
            words: &["entry"],
            arguments: &["PLACE", "WWPN"],
            least: 2,
            options: &[],
            effect: Effect::Do(|words| match words {
                [place, wwpn] => Ok(Operation::Put(set_inner("entries", place, *wwpn))),
                _ => Err("a place or a name is missing".to_owned()),
            }),
            about: "puts a target at a place, 0 to 255",
        },
        Subcommand {
            verb: Verb::Remove,
            words: &["entry"],
            arguments: &["PLACE"],
            least: 1,
            options: &[],
            effect: Effect::Do(|words| match words {
                [place] => Ok(Operation::Set(set_inner("entries", place, Value::Null))),
                _ => Err("a place is missing".to_owned()),
            }),
            about: "takes the target from a place",
        },
    ],
    columns: &["name", "entries", "descr"],
    parts: &[("entries", "entries")],
    ..PLAIN
};
