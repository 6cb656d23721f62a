//! On a host whose PID 1 is systemd, machines are machined's, in a scope or service of the host's systemd.

use std::path::PathBuf;
use std::time::Duration;

use nspawn_tests::cli::{Finished, Invocation};
use nspawn_tests::fixture::Debian;
use nspawn_tests::host::{HostSnapshot, alone};
use nspawn_tests::systemd_host::{SCRATCH, SystemdHost};
use nspawn_tests::{cli, wait};

/// `nspawn-run` inside, as a person types it there.
fn inside<A: AsRef<std::ffi::OsStr>>(
    host: &SystemdHost,
    arguments: impl IntoIterator<Item = A>,
) -> Invocation {
    host.service([cli::program()]).args(arguments)
}

fn unit_file(host: &SystemdHost, name: &str, text: &str) -> String {
    let path: PathBuf = host.scratch().join(name);
    std::fs::write(&path, text).unwrap();
    format!("{SCRATCH}/{name}")
}

/// What the host has of a machine: nothing of it may be left.
fn left_inside(host: &SystemdHost, name: &str) -> String {
    let mut text = String::new();
    for command in [
        "machinectl list --no-legend",
        "systemctl list-units --all --no-legend --plain 'nspawn-run-*' 'machine-*'",
        "ls /sys/block/*/loop/backing_file 2>/dev/null",
        "pgrep -a 'nspawn|nspawn-run'",
        "ls /sys/class/net",
        "ls /run/nspawn-run/machines 2>/dev/null",
        "find /sys/fs/cgroup -name 'nspawn-run*'",
    ] {
        let finished = host.command(["sh", "-c", command]).run();
        for line in finished.stdout.lines() {
            if line.contains(name)
                || line.contains("nspawn")
                || line.contains("nr-")
                || line.contains("loop")
            {
                text += &format!("{command}: {line}\n");
            }
        }
    }
    text
}

#[track_caller]
fn assert_nothing_inside(host: &SystemdHost, name: &str, what: &str) {
    let mut left = String::new();
    let clean = wait::until(Duration::from_secs(15), || {
        left = left_inside(host, name);
        left.is_empty().then_some(())
    });
    assert!(clean.is_some(), "{what}: left behind:\n{left}");
}

#[track_caller]
fn ask(host: &SystemdHost, command: &str) -> Finished {
    let finished = host.command(["sh", "-c", command]).run();
    finished.expect_code(0);
    finished
}

/// `machinectl` and `systemctl -M` know the machine.
fn assert_known(host: &SystemdHost, name: &str, unit: &str) {
    ask(host, "machinectl list --no-legend").expect_stdout(name);
    ask(
        host,
        &format!("machinectl show {name} -p State -p Class -p Unit"),
    )
    .expect_stdout("State=running")
    .expect_stdout("Class=container")
    .expect_stdout(&format!("Unit=nspawn-run-{name}.scope"));
    // the machine's bus may come up after its unit
    let active = wait::until(Duration::from_secs(30), || {
        let finished = host
            .command(["systemctl", "-M", name, "is-active", unit])
            .run();
        (finished.code() == 0).then_some(finished.stdout)
    });
    assert_eq!(active.as_deref(), Some("active\n"), "{}", host.console());
    ask(host, &format!("machinectl shell {name} /bin/true"));
    ask(host, &format!("machinectl status {name} --no-pager")).expect_stdout(unit);
    ask(
        host,
        &format!("systemctl is-active nspawn-run-{name}.scope"),
    )
    .expect_stdout("active");
}

#[test]
#[ignore = "needs root"]
fn root_machines_on_a_systemd_host_are_machineds() {
    let lock = alone();
    let before = HostSnapshot::take();
    let host = SystemdHost::boot(&lock);
    let raw = Debian::Raw.path().display().to_string();
    let unit = unit_file(
        &host,
        "web.service",
        "[Service]\nExecStart=/bin/sh -c 'echo up; exec sleep 600'\nExecStop=/bin/echo stopping\n",
    );
    let job = unit_file(
        &host,
        "job.service",
        "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo out; exit 7'\n",
    );

    // attended: result, output, and nothing left
    for image in ["host", &raw] {
        let finished = inside(&host, ["unit", &job, "--image", image]).run();
        finished.expect_code(7);
        assert_eq!(
            finished.stdout,
            "out\n",
            "{}\n{}",
            finished.transcript(),
            host.console()
        );
        assert_nothing_inside(&host, "job", image);
    }

    // attended, seen by machined, ended from there
    for verb in ["poweroff", "terminate"] {
        let running = inside(&host, ["unit", &unit, "--image", &raw]).spawn();
        running.wait_for_stdout("up");
        assert_known(&host, "web", "web.service");
        ask(&host, &format!("machinectl {verb} web"));
        let finished = running.finish();
        // to terminate is to send SIGTERM to all in the scope: whether that is in order is for the kernel to say
        if verb == "poweroff" {
            finished.expect_code(0);
        }
        assert_nothing_inside(&host, "web", verb);
    }

    // detached: a service of its own that survives the command
    for image in ["host", &raw] {
        let started = inside(&host, ["unit", &unit, "--image", image, "--detach"]).run();
        started.expect_code(0);
        assert_eq!(started.stdout, "web\n", "{}", started.transcript());
        assert_known(&host, "web", "web.service");
        ask(&host, "systemctl is-active nspawn-run-web.service").expect_stdout("active");
        let exec = inside(
            &host,
            ["exec", "web", "--", "systemctl", "is-active", "web.service"],
        )
        .run();
        assert_eq!(exec.stdout, "active\n", "{}", exec.transcript());
        let taken = inside(&host, ["unit", &unit, "--image", image, "--detach"]).run();
        taken.expect_code(125).expect_stderr("running already");
        inside(&host, ["stop", "web"]).run().expect_code(0);
        inside(&host, ["remove", "web"]).run().expect_code(0);
        assert_nothing_inside(&host, "web", image);
    }

    // the service's own stop is an orderly one
    inside(&host, ["unit", &unit, "--detach"])
        .run()
        .expect_code(0);
    ask(&host, "systemctl stop nspawn-run-web.service");
    inside(&host, ["wait", "web"]).run().expect_code(0);
    inside(&host, ["remove", "web"]).run().expect_code(0);
    assert_nothing_inside(&host, "web", "systemctl stop");

    // killed: the kernel and systemd clear up
    for victim in ["command", "supervisor", "leader"] {
        let running = inside(&host, ["unit", &unit, "--image", &raw]).spawn();
        running.wait_for_stdout("up");
        let kill = match victim {
            "command" => "pkill -KILL -o -x nspawn-run".to_owned(),
            "supervisor" => "pkill -KILL -x systemd-nspawn".to_owned(),
            _ => "kill -KILL $(machinectl show web -p Leader --value)".to_owned(),
        };
        ask(&host, &kill);
        let finished = running.finish();
        assert_ne!(finished.code(), 0, "{victim}: {}", finished.transcript());
        inside(&host, ["prune"]).run().expect_code(0);
        assert_nothing_inside(&host, "web", victim);
    }
    host.power_off();
    before.assert_unchanged();
}

#[test]
#[ignore = "needs root"]
fn root_a_published_image_is_machineds() {
    let lock = alone();
    let before = HostSnapshot::take();
    let host = SystemdHost::boot(&lock);
    for (image, name, kind) in [
        (Debian::Qcow2, "disk", "raw"),
        (Debian::Tar, "tree", "directory"),
    ] {
        let image = image.path().display().to_string();
        let publish = ["image", "pull", &image, "--publish", name];
        inside(&host, publish)
            .run()
            .expect_code(0)
            .expect_stdout("/var/lib/machines/");
        ask(&host, "machinectl list-images --no-legend").expect_stdout(name);
        ask(&host, &format!("machinectl image-status {name} --no-pager"))
            .expect_stdout(kind)
            .expect_stdout("Debian GNU/Linux 12");
        inside(&host, publish).run().expect_code(1);
        // machined itself can do away with it: it is a copy, and the store's image stays
        ask(&host, &format!("machinectl remove {name}"));
        inside(&host, ["image", "verify"]).run().expect_code(0);
    }
    host.power_off();
    before.assert_unchanged();
}
