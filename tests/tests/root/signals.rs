//! Ctrl-C and its kin: in order at first, at once the second time.

use std::time::Duration;

use nspawn_tests::scene::Scene;

const QUICK: [&str; 2] = ["--network", "none"];

#[test]
#[ignore = "needs root"]
fn root_a_signal_stops_the_unit_in_order() {
    let scene = Scene::new();
    let unit = scene.service(
        "orderly.service",
        "trap 'echo got TERM; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        "KillMode=mixed\nExecStop=/bin/echo stopping\nExecStopPost=/bin/echo stopped",
    );
    for (signal, code) in [
        (libc::SIGINT, 130),
        (libc::SIGTERM, 143),
        (libc::SIGHUP, 129),
    ] {
        let running = scene.unit(&unit, &QUICK).spawn();
        running.wait_for_stdout("up");
        running.signal(signal);
        let finished = running.finish();
        finished.expect_code(code);
        assert_eq!(
            finished.stdout,
            "up\nstopping\ngot TERM\nstopped\n",
            "{}",
            finished.transcript()
        );
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_second_signal_kills() {
    let scene = Scene::new();
    let unit = scene.service(
        "stubborn.service",
        "trap 'echo ignored' TERM; echo up; while :; do sleep 0.05; done",
        "KillMode=mixed\nTimeoutStopSec=600",
    );
    let running = scene.unit(&unit, &QUICK).spawn();
    running.wait_for_stdout("up");
    running.signal(libc::SIGINT);
    running.wait_for_stdout("ignored");
    running.signal(libc::SIGINT);
    let finished = running.finish();
    finished.expect_code(130);
    assert!(
        finished.elapsed < Duration::from_secs(20),
        "{}",
        finished.transcript()
    );
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_signal_while_the_unit_starts_ends_the_command() {
    let scene = Scene::new();
    let unit = scene.service(
        "starts.service",
        "echo begun; exec sleep 600",
        "Type=notify",
    );
    let running = scene.unit(&unit, &QUICK).spawn();
    running.wait_for_stdout("begun");
    running.signal(libc::SIGTERM);
    let finished = running.finish();
    finished.expect_code(143);
    assert!(
        finished.elapsed < Duration::from_secs(20),
        "{}",
        finished.transcript()
    );
    scene.assert_clean();

    // before the machine is there
    let running = scene.unit(&unit, &QUICK).spawn();
    running.wait_for_stderr("starting machine");
    running.signal(libc::SIGINT);
    let finished = running.finish();
    finished.expect_code(130);
    assert!(
        finished.elapsed < Duration::from_secs(20),
        "{}",
        finished.transcript()
    );
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_signal_ends_a_download() {
    use nspawn_tests::http::{HttpServer, Resource};
    let scene = Scene::new();
    let server = HttpServer::new();
    server.put(
        "/slow.raw",
        Resource::bytes(vec![7; 1 << 20]).stall_after(1000),
    );
    let unit = scene.script("never.service", "true");
    for arguments in [
        vec![
            "unit".to_owned(),
            unit.display().to_string(),
            "--image".into(),
            server.url("/slow.raw"),
            "--verify=no".into(),
        ],
        vec![
            "image".into(),
            "pull".into(),
            server.url("/slow.raw"),
            "--verify=no".into(),
        ],
    ] {
        let asked = server.requests().len();
        let running = scene.command(arguments).spawn();
        assert!(server.wait_for_requests(asked + 1, Duration::from_secs(20)));
        running.signal(libc::SIGINT);
        let finished = running.finish();
        finished.expect_code(130);
        assert_eq!(finished.stdout, "");
    }
    scene.end();
}
