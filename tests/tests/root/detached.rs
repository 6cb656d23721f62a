//! Machines that outlive the command: found, asked, stopped and waited for by others.

use std::time::Duration;

use nspawn_tests::scene::Scene;
use nspawn_tests::wait;
use serde_json::Value;

const DETACH: [&str; 3] = ["--network", "none", "--detach"];

fn listed(scene: &Scene) -> Vec<Value> {
    let list = scene.run(["list", "--format", "json"]);
    list.expect_code(0);
    serde_json::from_str::<Value>(&list.stdout)
        .unwrap()
        .as_array()
        .unwrap()
        .clone()
}

#[test]
#[ignore = "needs root"]
fn root_a_detached_machine_is_listed_asked_and_stopped() {
    let scene = Scene::new();
    let empty = scene.run(["list"]);
    empty.expect_code(0);
    assert_eq!(empty.stdout, "NAME  STATE  SINCE  UNITS  ADDRESS  IMAGE\n");
    assert_eq!(scene.run(["list", "--format", "json"]).stdout, "[]\n");

    let unit = scene.script("web.service", "echo hello; exec sleep 600");
    let name = scene.name("web");
    let started = scene.run_unit(&unit, &["--detach"]);
    started
        .expect_code(0)
        .expect_stderr("web.service is active");
    assert_eq!(
        started.stdout,
        format!("{name}\n"),
        "{}",
        started.transcript()
    );

    // the unit may be active before the rest of the boot is done
    let up = wait::until(Duration::from_secs(30), || {
        (scene.status(&name)["state"] == "running").then_some(())
    });
    assert!(up.is_some(), "{}", scene.status(&name));
    let machines = listed(&scene);
    assert_eq!(machines.len(), 1);
    let machine = &machines[0];
    assert_eq!(machine["name"], name.as_str());
    assert_eq!(machine["units"], serde_json::json!(["web.service"]));
    let address = machine["addresses"]["guest_v4"]
        .as_str()
        .unwrap()
        .to_owned();
    let table = scene.run(["ls"]);
    let row: Vec<&str> = table
        .stdout
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        (row[0], row[1]),
        (name.as_str(), "running"),
        "{}",
        table.stdout
    );
    assert!(
        row.contains(&"web.service") && row.contains(&address.as_str()),
        "{}",
        table.stdout
    );
    assert_eq!(scene.run(["list", "--names"]).stdout, format!("{name}\n"));

    let status = scene.status(&name);
    assert_eq!(status["state"], "running");
    assert_eq!(status["machine"]["name"], name.as_str());
    let unit_state = &status["units"][0];
    assert_eq!(unit_state["name"], "web.service");
    assert_eq!(unit_state["active_state"], "active");
    assert!(unit_state["main_pid"].as_u64().unwrap() > 1);
    let leader = status["machine"]["leader"]["pid"].as_i64().unwrap();
    let shown = scene.run(["status", &name]);
    shown
        .expect_code(0)
        .expect_stdout("state: running")
        .expect_stdout(&format!("leader: PID {leader}"))
        .expect_stdout(&address)
        .expect_stdout("unit: web.service: active (running)")
        .expect_stdout("thrown away at the end");
    scene
        .run(["status", &name, "web.service"])
        .expect_code(0)
        .expect_stdout("Active: active (running)");
    scene
        .run(["status", &name, "no-such.service"])
        .expect_code(4);

    let taken = scene.run_unit(&unit, &DETACH);
    taken
        .expect_code(125)
        .expect_stderr(&format!("a machine named {name} is running already"))
        .expect_stderr("hint:")
        .expect_stderr(&format!("nspawn-run stop {name}"));
    scene
        .run(["remove", &name])
        .expect_code(1)
        .expect_stderr("running already");
    assert_eq!(scene.run(["prune"]).stdout, "");

    let stopped = scene.run(["stop", &name]);
    stopped
        .expect_code(0)
        .expect_stderr(&format!("stopped {name}"));
    assert_eq!(stopped.stdout, "");
    scene.run(["stop", &name]).expect_code(0); // it has ended: nothing to do
    let ended = scene.run(["list"]);
    ended.expect_stdout(&name).expect_stdout("ended (0)");
    assert_eq!(scene.run(["list", "--names"]).stdout, "");
    scene
        .run(["status", &name])
        .expect_code(0)
        .expect_stdout("ended (0)");
    scene.run(["wait", &name]).expect_code(0);

    // the name is free again
    scene.run_unit(&unit, &DETACH).expect_code(0);
    assert_ne!(scene.run(["list", "--names"]).stdout, "");
    scene.run(["kill", &name]).expect_code(0);
    scene.run(["remove", &name]).expect_code(0);
    assert_eq!(scene.run(["list"]).stdout, empty.stdout);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_detached_machine_ends_with_its_units() {
    let scene = Scene::new();
    for (script, code, reason) in [
        (
            "until [ -e /run/go ]; do sleep 0.1; done; echo bye; exit 7",
            7,
            "exited with status 7",
        ),
        (
            "until [ -e /run/go ]; do sleep 0.1; done; echo bye",
            0,
            "ended in success",
        ),
        (
            "until [ -e /run/go ]; do sleep 0.1; done; echo bye; kill -KILL $$",
            137,
            "SIGKILL",
        ),
    ] {
        let unit = scene.script("job.service", script);
        let name = scene.name("job");
        scene.run_unit(&unit, &DETACH).expect_code(0);
        scene
            .run(["wait", &name, "--timeout", "1"])
            .expect_code(125)
            .expect_stderr("still runs after 1 s");
        let waiting = scene.command(["wait", &name]).spawn();
        scene
            .run(["exec", &name, "--", "touch", "/run/go"])
            .expect_code(0);
        let waited = waiting.finish();
        waited.expect_code(code).expect_stderr(reason);
        assert_eq!(waited.stdout, "");
        // as often as one likes, until it is removed
        scene.run(["wait", &name]).expect_code(code);
        scene
            .run(["list"])
            .expect_stdout(&format!("ended ({code})"));
        scene
            .run(["logs", &name])
            .expect_code(0)
            .expect_stdout("bye");
        let words = scene.leftovers();
        assert!(
            !words.contains("process") && !words.contains("mount"),
            "{words}"
        );
        scene.run(["remove", &name]).expect_code(0);
        scene.assert_clean();
    }
    scene
        .run(["wait", "no-such"])
        .expect_code(125)
        .expect_stderr("no machine is named no-such");
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_detached_start_that_fails_says_so_and_leaves_nothing() {
    let scene = Scene::new();
    for (script, settings, code, text) in [
        ("echo why; exit 3", "Type=oneshot", 3, "why"),
        (
            "exec sleep 600",
            "Type=notify\nTimeoutStartSec=1",
            143,
            "in time",
        ),
        (
            "true",
            "ExecStart=\nExecStart=/does/not/exist",
            203,
            "/does/not/exist",
        ),
    ] {
        let unit = scene.service("fails.service", script, settings);
        let finished = scene.run_unit(&unit, &DETACH);
        finished
            .expect_code(code)
            .expect_stderr(text)
            .expect_stderr("last journal lines");
        assert_eq!(finished.stdout, "", "{}", finished.transcript());
        let name = scene.name("fails");
        // it is kept on record how it ended, as for every detached machine
        scene.run(["remove", &name]).expect_code(0);
        scene.assert_clean();
    }
    let unit = scene.service("hangs.service", "exec sleep 600", "Type=notify");
    let finished = scene.unit(&unit, &DETACH).args(["--timeout", "3"]).run();
    finished.expect_code(125).expect_stderr("took longer than");
    scene.run(["remove", &scene.name("hangs")]).expect_code(0);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_logs_show_and_follow_the_journal() {
    let scene = Scene::new();
    let unit = scene.script(
        "talk.service",
        "until [ -e /run/speak ]; do sleep 0.1; done; echo one; echo two; \
         until [ -e /run/go ]; do sleep 0.1; done; echo three; exec sleep 600",
    );
    let name = scene.name("talk");
    scene.run_unit(&unit, &DETACH).expect_code(0);
    // only now: what systemd says of the start is in the journal before what the unit says
    scene
        .run(["exec", &name, "--", "touch", "/run/speak"])
        .expect_code(0);
    let read = wait::until(Duration::from_secs(10), || {
        let logs = scene.run(["logs", &name, "-o", "cat"]);
        logs.stdout.contains("one\ntwo\n").then_some(logs)
    });
    read.expect("the unit's lines").expect_code(0);
    let last = scene.run(["logs", &name, "-n", "1", "--output", "cat"]);
    assert_eq!(last.stdout, "two\n", "{}", last.transcript());
    let all = scene.run(["logs", &name, "--all", "-o", "cat"]);
    all.expect_code(0)
        .expect_stdout("two\n")
        .expect_stdout("Reached target");
    let other = scene.run(["logs", &name, "-u", "no-such.service"]);
    other.expect_code(0);
    let json = scene.run(["logs", &name, "-o", "json", "-n", "1"]);
    let entry: Value = serde_json::from_str(json.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(entry["MESSAGE"], "two");

    let following = scene.command(["logs", &name, "-f", "-o", "cat"]).spawn();
    following.wait_for_stdout("two");
    scene
        .run(["exec", &name, "--", "touch", "/run/go"])
        .expect_code(0);
    following.wait_for_stdout("three");
    // it ends with the machine
    scene.run(["kill", &name]).expect_code(0);
    let finished = following.finish();
    assert!(
        finished.stdout.contains("one\ntwo\nthree\n"),
        "{}",
        finished.transcript()
    );
    scene.run(["remove", &name]).expect_code(0);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_unit_gets_signals_by_name_and_number() {
    let scene = Scene::new();
    let unit = scene.script(
        "traps.service",
        "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo set; \
         while :; do sleep 0.1; done",
    );
    let name = scene.name("traps");
    let running = scene.unit(&unit, &["--network", "none"]).spawn();
    running.wait_for_stdout("set");
    for (signal, line) in [
        ("USR1", "usr1"),
        ("sighup", "hup"),
        ("10", "usr1"),
        ("TERM", "term"),
    ] {
        let killed = scene.run(["kill", &name, "-u", "traps.service", "-s", signal]);
        killed.expect_code(0);
        running.wait_for_stdout(line);
    }
    let finished = running.finish();
    finished.expect_code(5);
    // the signals went to all its processes, and the shell tells of those of its children
    let own: Vec<&str> = finished
        .stdout
        .lines()
        .filter(|line| !line.contains(char::is_uppercase))
        .collect();
    assert_eq!(
        own,
        ["set", "usr1", "hup", "usr1", "term"],
        "{}",
        finished.transcript()
    );
    for (arguments, code, text) in [
        (vec!["kill", "no-such"], 1, "no machine is named"),
        (vec!["kill", "x", "-s", "TERM"], 2, "--unit"),
        (
            vec!["kill", "x", "-u", "a.service", "-s", "NOPE"],
            2,
            "no signal has this name",
        ),
        (vec!["stop", "no-such"], 1, "no machine is named"),
        (vec!["status", "no-such"], 1, "no machine is named"),
        (vec!["logs", "no-such"], 1, "no machine is named"),
    ] {
        let finished = scene.run(arguments);
        finished.expect_code(code).expect_stderr(text);
        assert_eq!(finished.stdout, "");
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_killing_the_machine_of_a_command_ends_the_command() {
    let scene = Scene::new();
    let unit = scene.script("victim.service", "echo up; exec sleep 600");
    for how in [["kill"].as_slice(), ["stop"].as_slice()] {
        let running = scene.unit(&unit, &["--network", "none"]).spawn();
        running.wait_for_stdout("up");
        let name = scene.name("victim");
        let mut arguments = how.to_vec();
        arguments.push(&name);
        scene.run(arguments).expect_code(0);
        let finished = running.finish();
        let expected = if how == ["kill"] { 137 } else { 0 };
        finished.expect_code(expected);
        assert_eq!(finished.stdout, "up\n", "{}", finished.transcript());
        scene.assert_clean();
    }
    scene.end();
}
