//! A controller with many hosts, which are simulated: each answers at its control socket for what its
//! lab file says. Times are those of the operator, with the start of `fabricctl`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fabric_config::LabConfig;
use orimono_tests::lab::Site;
use serde_json::{Value, json};

use super::Figure;
use crate::test::build_programs;

/// How long all may take to be up. A guard, not a figure.
const PATIENCE: Duration = Duration::from_secs(300);
/// Each has a thread, which mostly sleeps.
const STACK_BYTES: usize = 256 << 10;
const AT_MOST: (f64, f64) = (0.0, 1.0);

pub(super) fn measure() -> Result<Vec<Figure>> {
    build_programs()?;
    let mut figures = measure_with(120)?;
    figures.extend(measure_with(1_000)?);
    Ok(figures)
}

/// 4 vNICs and 2 vHBAs for each of `hosts` on two directors.
fn site_file(hosts: usize) -> String {
    let mut text = String::from(
        "[lun.data]\nport = \"4/1\"\nnull = \"1G\"\n\
         [template.web.vnics]\n\
         vn0 = { if = \"10/1\" }\nvn1 = { if = \"10/2\" }\nvn2 = { if = \"10/3\" }\nvn3 = { if = \"10/4\" }\n\
         [template.web.vhbas]\n\
         hb0 = { if = \"4/1\", luns = { 0 = \"data\" } }\nhb1 = { if = \"4/1\", luns = { 0 = \"data\" } }\n",
    );
    for (director, prefix, port) in [("d1", "", 7471), ("d2", "d2:", 7472)] {
        text += &format!(
            "[director.{director}]\nlisten = [\"tcp:127.0.0.1:{port}\"]\n\
             [iocard.\"{prefix}10\"]\nkind = \"ethernet\"\n[iocard.\"{prefix}4\"]\nkind = \"san\"\n"
        );
    }
    for host in 0..hosts {
        let director = 1 + host % 2;
        text += &format!(
            "[host.h{host}]\ndirector = \"d{director}\"\n\
             [server-profile.s{host}]\nserver = \"vm@h{host}\"\ntemplate = \"web\"\n"
        );
    }
    text
}

/// Stands in for a director or host agent, until this process ends.
fn simulate(site: &Site, name: &str) -> Result<()> {
    let place = site.node(name);
    std::fs::create_dir_all(&place)?;
    let listener = UnixListener::bind(place.join("control.sock"))?;
    let name = name.to_owned();
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    thread.spawn(move || {
        let devices = Mutex::new(Value::Array(Vec::new()));
        for stream in listener.incoming().flatten() {
            // The controller goes when it likes.
            drop(serve(&stream, &place, &name, &devices));
        }
    })?;
    Ok(())
}

fn serve(stream: &UnixStream, place: &Path, name: &str, devices: &Mutex<Value>) -> Result<()> {
    let mut out = stream;
    for line in BufReader::new(stream).lines() {
        let mut devices = devices.lock().unwrap_or_else(|error| error.into_inner());
        let answer = if line?.contains("apply") {
            *devices = devices_of(&place.join("lab.toml"), name)?;
            json!({"ok": {"objects": []}})
        } else {
            json!({"ok": *devices})
        };
        drop(devices);
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

/// The devices of a host, all of them at their director.
fn devices_of(file: &Path, name: &str) -> Result<Value> {
    let lab = LabConfig::read(file)?;
    let host = lab.host(name);
    let vnics = host
        .iter()
        .flat_map(|host| host.vnics())
        .map(|it| (&it.name, it.generation));
    let vhbas = host
        .iter()
        .flat_map(|host| host.vhbas())
        .map(|it| (&it.name, it.generation));
    let devices = vnics.chain(vhbas).map(|(name, generation)| {
        json!({"name": name, "generation": generation, "attached": true, "refused": null, "guest": null})
    });
    Ok(Value::Array(devices.collect()))
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64())
}

fn measure_with(hosts: usize) -> Result<Vec<Figure>> {
    let site = Site::start()?;
    let names = (0..hosts).map(|host| format!("h{host}"));
    for name in names.chain(["d1".to_owned(), "d2".to_owned()]) {
        simulate(&site, &name)?;
    }
    let file = site.folder().join("site.toml");
    std::fs::write(&file, site_file(hosts))?;
    let apply = format!("apply -f {}", file.display());
    let start = Instant::now();
    let applied = timed(|| site.ctl(&apply).map(drop))?;
    let all_up = || -> Result<bool> {
        let devices = [site.ctl("--json show vnic")?, site.ctl("--json show vhba")?];
        let up = devices.iter().map(|text| text.matches("\"up/up\"").count());
        // An object's own state, and that of its port.
        Ok(up.sum::<usize>() == 2 * 6 * hosts)
    };
    while !all_up()? {
        ensure!(start.elapsed() < PATIENCE, "{}", site.ctl("show alarms")?);
    }
    let up = start.elapsed().as_secs_f64();
    let shown = timed(|| site.ctl("show vnic").map(drop))?;
    let added = timed(|| site.ctl("add vnic more.s7 10/1").map(drop))?;
    let (_, kib) = site.process("controller")?.resources()?;
    let figure = |case: &str, value: f64, unit, reference: f64| Figure {
        bench: "controller",
        case: format!("{hosts} hosts: {case}"),
        value,
        unit,
        reference,
        goal: AT_MOST,
    };
    // The promises are for 120 hosts; more may take more in proportion.
    let scale = f64::from(u32::try_from(hosts)?) / 120.0;
    let scaled = |promise: f64| promise * scale.max(1.0);
    Ok(vec![
        figure("apply answered", applied, "s", scaled(10.0)),
        figure("all devices up", up, "s", scaled(10.0)),
        figure(
            "memory of the controller",
            kib as f64 / 1024.0,
            "MiB",
            300.0,
        ),
        figure("show vnic", shown * 1e3, "ms", scaled(200.0)),
        figure("one more add vnic", added * 1e3, "ms", scaled(100.0)),
    ])
}
