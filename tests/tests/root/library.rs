//! The library by itself: who owns a machine, and what becomes of it.

use std::path::Path;
use std::time::Duration;

use nspawn_core::{
    Dirs, Host, MachineConfig, MachineError, Network, Rootfs, SpawnOptions, UnitFile, UnitName,
};
use nspawn_tests::cli::Invocation;
use nspawn_tests::scene::Scene;
use nspawn_tests::wait;

fn host(root: &Path, run_root: &Path) -> Host {
    let dirs = Dirs {
        state: root.to_owned(),
        run: run_root.to_owned(),
    };
    Host::detect_with(dirs).expect("this host runs machines")
}

fn config(name: &str, script: &str) -> MachineConfig {
    let unit = format!("[Service]\nExecStart=/bin/sh -c '{script}'\n");
    let unit = UnitFile::new("web.service".parse().unwrap(), unit).unwrap();
    MachineConfig::builder(name.parse().unwrap(), Rootfs::Host)
        .unit(unit)
        .network(Network::None)
        .build()
        .unwrap()
}

fn web() -> UnitName {
    "web.service".parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn root_a_machine_ends_with_its_handle() {
    let scene = Scene::new();
    let host = host(scene.cli().root(), scene.cli().run_root());
    let name = scene.name("web");
    let config = config(&name, "exec sleep 600");
    let machine = host.spawn(&config).unwrap();
    machine
        .wait_active(&web(), Duration::from_secs(60))
        .unwrap();
    let output = machine
        .exec(["systemctl", "is-active", "web.service"])
        .unwrap();
    assert_eq!(output.stdout, b"active\n");
    // another handle does not own it
    drop(host.machine(machine.name()).unwrap());
    assert!(!machine.has_ended());
    assert!(matches!(
        host.spawn(&config),
        Err(MachineError::NameTaken { .. })
    ));
    let leader = i32::try_from(machine.leader().pid).unwrap();
    drop(machine);
    assert!(wait::process_exit(leader, Duration::from_secs(5)).unwrap());
    assert!(matches!(
        host.record(config.name()),
        Err(MachineError::NoMachine { .. })
    ));
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_stopped_machine_is_gone_and_its_record_kept_where_asked() {
    let scene = Scene::new();
    let host = host(scene.cli().root(), scene.cli().run_root());
    let config = config(&scene.name("web"), "exec sleep 600");
    let options = SpawnOptions { keep_record: true };
    let reporter = std::sync::Arc::new(nspawn_core::NoReport);
    let machine = host.spawn_with(&config, options, reporter).unwrap();
    machine
        .wait_active(&web(), Duration::from_secs(60))
        .unwrap();
    assert!(!machine.wait(Duration::from_millis(100)).unwrap());
    machine.stop(Duration::from_secs(10)).unwrap();
    assert!(machine.has_ended());
    assert!(machine.wait(Duration::ZERO).unwrap());
    assert!(matches!(
        machine.exec(["true"]),
        Err(MachineError::Gone { .. })
    ));
    let outcome = host.record(config.name()).unwrap().outcome.unwrap();
    assert_eq!(outcome.status, 0, "{outcome:?}");
    drop(machine);
    host.remove(config.name()).unwrap();
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_unit_that_fails_is_an_error_with_its_status() {
    let scene = Scene::new();
    let host = host(scene.cli().root(), scene.cli().run_root());
    let machine = host.spawn(&config(&scene.name("web"), "exit 7")).unwrap();
    let results = machine.wait_all_ended(&[web()]).unwrap().unwrap();
    assert_eq!(results[0].status, 7);
    match machine.wait_active(&web(), Duration::from_secs(60)) {
        Err(MachineError::UnitFailed { unit, status, .. }) => {
            assert_eq!((unit, status), (web(), 7))
        }
        other => panic!("{other:?}"),
    }
    drop(machine);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_machine_ends_with_a_program_that_is_killed() {
    let scene = Scene::new();
    let name = scene.name("web");
    let owner = Invocation::new(env!("CARGO_BIN_EXE_own-machine"))
        .args([scene.cli().root(), scene.cli().run_root()])
        .arg(&name)
        .spawn();
    let line = owner.wait_for_stdout("leader=");
    let leader: i32 = line.rsplit_once('=').unwrap().1.parse().unwrap();
    owner.signal(libc::SIGKILL);
    assert_eq!(owner.finish().code(), 137);
    assert!(wait::process_exit(leader, Duration::from_secs(5)).unwrap());
    // plain folders may stay until the next start
    let host = host(scene.cli().root(), scene.cli().run_root());
    assert!(matches!(
        host.machine(&name.parse().unwrap()),
        Err(MachineError::Gone { .. })
    ));
    drop(host.spawn(&config(&name, "exec sleep 600")).unwrap());
    scene.end();
}
