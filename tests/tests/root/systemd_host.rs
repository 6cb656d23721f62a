//! The nested systemd host boots, runs commands, and leaves the outer host as it was.

use std::time::Duration;

use nspawn_tests::fixture;
use nspawn_tests::host::{HostSnapshot, alone};
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::systemd_host::{OUTER_ADDRESS, SCRATCH, SystemdHost};
use nspawn_tests::wait;

#[test]
#[ignore = "needs root"]
fn root_systemd_host_boots_and_leaves_nothing() {
    let lock = alone();
    let before = HostSnapshot::take();
    let host = SystemdHost::boot(&lock);
    host.command(["machinectl", "list"])
        .run()
        .expect_code(0)
        .expect_stdout("No machines.");
    host.command(["systemctl", "is-system-running"])
        .run()
        .expect_stdout("running")
        .expect_code(0);

    let finished = host
        .service(["sh", "-c", "cat; echo err >&2; exit 7"])
        .stdin("in\n")
        .run();
    finished
        .expect_code(7)
        .expect_stdout("in\n")
        .expect_stderr("err\n");

    std::fs::write(host.scratch().join("file"), "from outside\n").unwrap();
    host.command(["cat", &format!("{SCRATCH}/file")])
        .run()
        .expect_stdout("from outside\n");
    let image = fixture::Debian::Raw.path();
    host.command(["test", "-r"])
        .arg(&image)
        .run()
        .expect_code(0);

    let server = HttpServer::on(OUTER_ADDRESS.into());
    server.put("/hello", Resource::bytes("hello\n"));
    host.command(["curl", "-sS", &server.url("/hello")])
        .run()
        .expect_code(0)
        .expect_stdout("hello\n");

    host.power_off();
    before.assert_unchanged();
}

#[test]
#[ignore = "needs root"]
fn root_systemd_host_boots_machines_that_machined_knows() {
    let lock = alone();
    let before = HostSnapshot::take();
    let host = SystemdHost::boot(&lock);
    let tar = fixture::Debian::Tar.path();
    host.service(["mkdir", "/var/lib/machines/inner"])
        .run()
        .expect_code(0);
    host.service(["tar", "--directory=/var/lib/machines/inner", "-xf"])
        .arg(&tar)
        .run()
        .expect_code(0);
    host.command(["machinectl", "start", "inner"])
        .run()
        .expect_code(0);
    host.command(["machinectl", "list", "--no-legend"])
        .run()
        .expect_stdout("inner");
    // Started is not up: the machine's own bus tells, and nothing announces it on this host.
    let hostname = wait::until(Duration::from_secs(60), || {
        let run = [
            "systemd-run",
            "--machine=inner",
            "--quiet",
            "--wait",
            "--pipe",
        ];
        let finished = host.command(run).args(["cat", "/etc/hostname"]).run();
        (finished.code() == 0).then_some(finished.stdout)
    });
    assert_eq!(hostname.as_deref(), Some("debian\n"), "{}", host.console());
    host.command(["machinectl", "poweroff", "inner"])
        .run()
        .expect_code(0);
    host.power_off();
    before.assert_unchanged();
}
