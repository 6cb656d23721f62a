//! SIGKILL of anything at any time leaves nothing that the kernel keeps, and the same command works again.

use std::time::Duration;

use nspawn_tests::cli::Running;
use nspawn_tests::fixture::Debian;
use nspawn_tests::scene::Scene;
use nspawn_tests::wait;

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Command,
    Monitor,
    Supervisor,
    Leader,
}

/// Source: proc_pid_status(5).
fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// The process, where it is there already. A record whose owner is no child of the command is that of a machine before.
fn find(scene: &Scene, name: &str, victim: Victim, command: &Running) -> Option<i32> {
    let pid = |key: &str| {
        let path = scene
            .cli()
            .run_root()
            .join("machines")
            .join(name)
            .join("state.json");
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let pid = |key: &str| i32::try_from(record[key]["pid"].as_i64()?).ok();
        let is_own = parent(pid("owner")?) == Some(command.pid());
        pid(key).filter(|_| is_own)
    };
    match victim {
        Victim::Command => Some(command.pid()),
        Victim::Monitor => pid("owner"),
        Victim::Supervisor => pid("supervisor"),
        Victim::Leader => pid("leader"),
    }
}

fn kill(pid: i32) {
    let finished = nspawn_tests::cli::Invocation::new("kill")
        .args(["-KILL", &pid.to_string()])
        .run();
    drop(finished); // it may be gone by itself
}

/// What only plain folders may be left of: neither mounts nor devices, cgroups, processes or links.
fn kernel_leftovers(scene: &Scene) -> Vec<String> {
    let left = scene.leftovers();
    left.lines()
        // a cgroup without a process is a plain folder to the kernel: the next start removes it
        .filter(|line| !line.starts_with("entry ") && !line.starts_with("cgroup "))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn assert_kernel_clean(scene: &Scene, what: &str) {
    let mut left = Vec::new();
    // an orderly shutdown has 10 s before the machine is killed
    let clean = wait::until(Duration::from_secs(20), || {
        left = kernel_leftovers(scene);
        left.is_empty().then_some(())
    });
    assert!(clean.is_some(), "{what}: left behind:\n{}", left.join("\n"));
}

#[test]
#[ignore = "needs root"]
fn root_a_kill_at_any_time_leaves_nothing() {
    let scene = Scene::alone();
    let raw = Debian::Raw.path();
    let unit = scene.script("victim.service", "echo up; exec sleep 600");
    let again = scene.script("again.service", "echo works");
    let name = scene.name("victim");
    let victims = [
        Victim::Command,
        Victim::Monitor,
        Victim::Supervisor,
        Victim::Leader,
    ];
    // no dice: the moments are spread over the start, and each kind of process has its turn at each part of it
    for round in 0..20_u64 {
        let victim = victims[usize::try_from(round).unwrap() % victims.len()];
        let moment = Duration::from_millis(round * 1500 / 20);
        let image = if round % 3 == 0 {
            "host"
        } else {
            raw.to_str().unwrap()
        };
        let what = format!("{victim:?} after {moment:?} with {image}");
        println!("{what}"); // shown where the test fails
        let running = scene.unit(&unit, &["--image", image]).spawn();
        // the one sleep there is: the moment itself
        std::thread::sleep(moment);
        let pid = wait::until(Duration::from_secs(30), || {
            find(&scene, &name, victim, &running)
        });
        kill(pid.unwrap_or_else(|| panic!("{what}: no such process")));
        let finished = running.finish();
        assert!(finished.code() != 0, "{what}: {}", finished.transcript());
        if !matches!(victim, Victim::Command) {
            assert!(
                finished.stderr.contains("error: "),
                "{what}: {}",
                finished.transcript()
            );
        }
        assert_kernel_clean(&scene, &what);
        if round % 5 == 4 {
            let finished = scene
                .command([
                    "unit",
                    again.to_str().unwrap(),
                    "--name",
                    &name,
                    "--image",
                    image,
                ])
                .run();
            finished.expect_code(0);
            assert_eq!(
                finished.stdout,
                "works\n",
                "{what}: {}",
                finished.transcript()
            );
        }
    }
    scene.run(["prune"]).expect_code(0);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_what_a_killed_owner_leaves_is_pruned() {
    let scene = Scene::new();
    let unit = scene.script("lost.service", "exec sleep 600");
    let name = scene.name("lost");
    let raw = Debian::Raw.path();
    let options = ["--image", raw.to_str().unwrap(), "--detach"];
    for tidy in ["prune", "remove", "unit"] {
        scene.run_unit(&unit, &options).expect_code(0);
        let owner = scene.status(&name)["machine"]["owner"]["pid"]
            .as_i64()
            .unwrap();
        kill(i32::try_from(owner).unwrap());
        assert_kernel_clean(&scene, "the owner");
        scene.run(["list"]).expect_code(0).expect_stdout("lost ");
        scene
            .run(["exec", &name, "--", "true"])
            .expect_code(125)
            .expect_stderr("not running");
        scene
            .run(["wait", &name])
            .expect_code(125)
            .expect_stderr("killed");
        match tidy {
            "prune" => assert_eq!(scene.run(["prune"]).stdout, format!("{name}\n")),
            "remove" => drop(scene.run(["remove", &name]).expect_code(0).clone()),
            _ => {
                scene.run_unit(&unit, &options).expect_code(0);
                scene.run(["kill", &name]).expect_code(0);
                scene.run(["remove", &name]).expect_code(0);
            }
        }
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_detached_machine_survives_the_command_and_its_terminal() {
    let scene = Scene::new();
    let unit = scene.script("stays.service", "exec sleep 600");
    let name = scene.name("stays");
    // a session of its own, which ends with the command, as a terminal's does
    let line = format!(
        "{} --root {} --run-root {} unit {} --name {name} --network none --detach",
        nspawn_tests::cli::program().display(),
        scene.cli().root().display(),
        scene.cli().run_root().display(),
        unit.display()
    );
    let started = nspawn_tests::cli::Invocation::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .run();
    started.expect_code(0);
    let active = scene.run([
        "exec",
        &name,
        "--",
        "systemctl",
        "is-active",
        "stays.service",
    ]);
    assert_eq!(active.stdout, "active\n", "{}", active.transcript());
    scene.run(["stop", &name]).expect_code(0);
    scene.run(["remove", &name]).expect_code(0);
    scene.end();
}
