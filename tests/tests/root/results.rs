//! `unit` ends as its units do, and prints what they print.

use nspawn_tests::scene::Scene;
use nspawn_tests::wait;

/// Quick to boot: nothing to download, no link.
const QUICK: [&str; 2] = ["--network", "none"];

/// A unit and how the command ends.
struct Case {
    name: &'static str,
    script: &'static str,
    settings: &'static str,
    code: i32,
    stdout: &'static str,
    stderr: &'static [&'static str],
}

#[test]
#[ignore = "needs root"]
fn root_the_exit_status_is_the_units() {
    let scene = Scene::new();
    let table = [
        Case {
            name: "zero.service",
            script: "echo one; echo two >&2",
            settings: "",
            code: 0,
            stdout: "one\ntwo\n",
            stderr: &["zero.service ended in success"],
        },
        Case {
            name: "seven.service",
            script: "echo before; exit 7",
            settings: "",
            code: 7,
            stdout: "before\n",
            stderr: &["seven.service", "exited with status 7", "before"],
        },
        Case {
            name: "killed.service",
            script: "kill -KILL $$",
            settings: "",
            code: 137,
            stdout: "",
            stderr: &["killed.service", "was killed by SIGKILL"],
        },
        Case {
            name: "terminated.service",
            script: "kill -HUP $$",
            settings: "SuccessExitStatus=5",
            code: 0,
            stdout: "",
            stderr: &["ended in success"],
        },
        Case {
            name: "expected.service",
            script: "exit 5",
            settings: "SuccessExitStatus=5",
            code: 0,
            stdout: "",
            stderr: &["ended in success"],
        },
        Case {
            name: "oneshot.service",
            script: "echo done",
            settings: "Type=oneshot",
            code: 0,
            stdout: "done\n",
            stderr: &["ended in success"],
        },
        Case {
            name: "remain.service",
            script: "echo done",
            settings: "Type=oneshot\nRemainAfterExit=yes",
            code: 0,
            stdout: "done\n",
            stderr: &["remain.service is active", "ended in success"],
        },
        Case {
            name: "oneshot-fails.service",
            script: "echo why; exit 3",
            settings: "Type=oneshot",
            code: 3,
            stdout: "why\n",
            stderr: &["exited with status 3", "last journal lines", "why"],
        },
        Case {
            name: "absent.service",
            script: "true",
            settings: "ExecStart=\nExecStart=/does/not/exist",
            code: 203,
            stdout: "",
            stderr: &["status 203", "its program cannot be run", "/does/not/exist"],
        },
        Case {
            name: "nobody.service",
            script: "true",
            settings: "User=no-such-user",
            code: 217,
            stdout: "",
            stderr: &["status 217", "its user does not exist"],
        },
        Case {
            name: "notify.service",
            script: "echo up; systemd-notify --ready; echo ready; sleep 0.2; exit 4",
            settings: "Type=notify\nNotifyAccess=all",
            code: 4,
            stdout: "up\nready\n",
            stderr: &["notify.service is active", "exited with status 4"],
        },
        Case {
            name: "silent.service",
            script: "exit 0",
            settings: "Type=notify\nNotifyAccess=all",
            code: 1,
            stdout: "",
            stderr: &["did not say that it is ready"],
        },
        Case {
            name: "slow.service",
            script: "echo waiting; exec sleep 600",
            settings: "Type=notify\nTimeoutStartSec=1",
            code: 143,
            stdout: "waiting\n",
            stderr: &["did not start or stop in time", "waiting"],
        },
        Case {
            name: "unmet.service",
            script: "true",
            settings: "[Unit]\nConditionPathExists=/does/not/exist",
            code: 1,
            stdout: "",
            stderr: &["was not started", "ConditionPathExists=/does/not/exist"],
        },
        Case {
            name: "restarted.service",
            script: "echo try; exit 9",
            settings: "Restart=on-failure\nRestartSec=0\n[Unit]\nStartLimitBurst=3",
            code: 9,
            stdout: "try\ntry\ntry\n",
            stderr: &["restarted.service"],
        },
    ];
    for case in table {
        let unit = scene.service(case.name, case.script, case.settings);
        let finished = scene.run_unit(&unit, &QUICK);
        finished.expect_code(case.code);
        assert_eq!(finished.stdout, case.stdout, "{}", finished.transcript());
        for text in case.stderr {
            finished.expect_stderr(text);
        }
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_quiet_command_says_nothing() {
    let scene = Scene::new();
    let unit = scene.script("quiet.service", "echo payload");
    let finished = scene.unit(&unit, &QUICK).arg("--quiet").run();
    finished.expect_code(0);
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("payload\n", "")
    );
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_unit_that_takes_too_long_is_given_up() {
    let scene = Scene::new();
    let unit = scene.service("hangs.service", "echo here; exec sleep 600", "Type=notify");
    let finished = scene.run_unit(&unit, &["--network", "none", "--timeout", "4"]);
    finished
        .expect_code(125)
        .expect_stderr("hangs.service took longer than")
        .expect_stderr("hint:")
        .expect_stderr("hangs.service is activating");
    assert_eq!(finished.stdout, "here\n", "{}", finished.transcript());
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_every_byte_of_output_arrives_in_order() {
    let scene = Scene::new();
    let unit = scene.service(
        "much.service",
        "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; printf 'no newline'",
        "LogRateLimitIntervalSec=0",
    );
    let finished = scene.run_unit(&unit, &QUICK);
    finished.expect_code(0);
    let expected: String = (1..=2000).map(|i| format!("line {i}\n")).collect();
    assert!(
        finished.stdout == expected + "no newline\n",
        "{}",
        finished.transcript()
    );
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_several_units_run_in_one_machine() {
    let scene = Scene::new();
    let server = scene.service(
        "first.service",
        "echo first > /run/first; echo from first; exec sleep 600",
        "",
    );
    let client = scene.write(
        "second.service",
        "[Unit]\nAfter=first.service\n[Service]\nType=oneshot\n\
         ExecStart=/bin/sh -c 'until [ -e /run/first ]; do sleep 0.1; done; echo saw $(cat /run/first)'\n\
         ExecStartPost=/bin/systemctl stop first.service\n",
    );
    let finished = scene.unit(&server, &QUICK).arg(&client).run();
    finished.expect_code(0);
    let mut lines: Vec<&str> = finished.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["from first", "saw first"],
        "{}",
        finished.transcript()
    );

    // one of several fails: its status is the command's
    let bad = scene.script("bad.service", "exit 6");
    let good = scene.script("good.service", "exit 0");
    scene
        .unit(&good, &QUICK)
        .arg(&bad)
        .run()
        .expect_code(6)
        .expect_stderr("bad.service");
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_machine_that_shuts_itself_down_ends_the_command() {
    let scene = Scene::new();
    let unit = scene.script(
        "off.service",
        "echo last words; systemctl poweroff; exec sleep 600",
    );
    let finished = scene.run_unit(&unit, &QUICK);
    assert!(
        finished.stdout.contains("last words\n"),
        "{}",
        finished.transcript()
    );
    // the unit was ended by the shutdown, as systemd ends it
    finished.expect_code(0);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_templates_and_drop_ins_beside_the_unit_count() {
    let scene = Scene::new();
    scene.write(
        "web@.service",
        "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo instance %i $$COLOR $$SIZE'\n",
    );
    scene.write(
        "web@.service.d/10-all.conf",
        "[Service]\nEnvironment=COLOR=red SIZE=big\n",
    );
    scene.write(
        "web@blue.service.d/20-one.conf",
        "[Service]\nEnvironment=COLOR=blue\n",
    );
    for (instance, line) in [
        ("1", "instance 1 red big\n"),
        ("blue", "instance blue blue big\n"),
    ] {
        let file = scene.dir().join(format!("web@{instance}.service"));
        let finished = scene.run_unit(&file, &QUICK);
        finished.expect_code(0);
        assert_eq!(finished.stdout, line, "{}", finished.transcript());
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_masked_unit_does_not_start() {
    let scene = Scene::new();
    scene.write("other.service", "[Service]\nExecStart=/bin/true\n");
    let unit = scene.script(
        "asks.service",
        "systemctl is-enabled systemd-tmpfiles-clean.timer; systemctl show -P LoadState systemd-tmpfiles-clean.timer",
    );
    let finished = scene.run_unit(
        &unit,
        &[
            "--network",
            "none",
            "--mask",
            "systemd-tmpfiles-clean.timer",
        ],
    );
    finished.expect_code(0).expect_stdout("masked\n");
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_reader_of_the_output_that_goes_away_ends_the_machine() {
    let scene = Scene::new();
    let unit = scene.script("pipe.service", "while echo y; do sleep 0.05; done");
    let name = scene.name("pipe");
    let line = format!(
        "{} --root {} --run-root {} unit {} --name {name} --network none | head -n 1",
        nspawn_tests::cli::program().display(),
        scene.cli().root().display(),
        scene.cli().run_root().display(),
        unit.display(),
    );
    let line = format!("set -o pipefail; {line}");
    let finished = nspawn_tests::cli::Invocation::new("bash")
        .args(["-c", &line])
        .run();
    // as the shell has it of a program that SIGPIPE ended
    finished.expect_code(141);
    assert_eq!(finished.stdout, "y\n", "{}", finished.transcript());
    assert!(
        wait::until(std::time::Duration::from_secs(20), || scene
            .leftovers()
            .is_empty()
            .then_some(()))
        .is_some(),
        "{}",
        finished.transcript()
    );
    scene.end();
}
