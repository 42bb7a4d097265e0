//! Who may do what: nobody but the daemon's user gets at what it has, and secrets stay where they are.

use crate::gateway::{Gateway, nics, sh};
use crate::story::{PUSH_CTL, Story, device, outside, server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use push_common::token::Token;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use xtask::child;
use xtask::lab::{Lab, Options};

const DAEMON: u32 = 65_534;
const SOMEBODY: u32 = 65_533;
const LIMIT: Duration = Duration::from_secs(20);

/// Of another user.
fn as_user(lab: &Lab, user: u32, program: &str) -> Command {
    let mut command = lab.gateway_command("setpriv");
    command
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .args(["--clear-groups", "--no-new-privs", "--inh-caps=-all"])
        .args(["--bounding-set=-all", program]);
    command
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_in(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn another_user_gets_at_no_pin_and_not_at_the_admin_socket() {
    let mut options = Options::new("push-sec-1", Path::new(PUSH_CTL));
    options.daemon = false;
    let lab = Lab::up(&options).unwrap();
    chown(lab.folder(), Some(DAEMON), Some(DAEMON)).unwrap();
    chown(lab.folder().join("bpf"), Some(DAEMON), Some(DAEMON)).unwrap();
    let (uid, gid) = (format!("--reuid={DAEMON}"), format!("--regid={DAEMON}"));
    let three = "-all,+bpf,+net_admin,+perfmon";
    let sets = ["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}={three}"));
    let mut wrapper = vec!["setpriv", &uid, &gid, "--clear-groups"];
    wrapper.extend(sets.iter().map(String::as_str));
    lab.start_by(&wrapper).unwrap();
    // Nor do others of the same user: neither its memory nor its files are theirs to look at.
    let process = format!("/proc/{}", lab.pid().unwrap());
    assert_eq!(fs::metadata(format!("{process}/mem")).unwrap().uid(), 0);
    let mut peek = as_user(&lab, DAEMON, "cat");
    let peeked = child::finish(peek.arg(format!("{process}/maps"))).unwrap();
    assert!(!peeked.status.success());

    // The way there is opened, so that it isn't that alone that keeps them out.
    sh(&format!(
        "find {} -type d -exec chmod a+rx {{}} +",
        lab.folder().display()
    ));
    let pins: Vec<_> = files_in(&lab.folder().join("bpf/push"));
    assert!(pins.len() > 5, "{pins:?}");
    for pin in &pins {
        let kind = if pin
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("link")
        {
            "link"
        } else {
            "map"
        };
        let about = fs::metadata(pin).unwrap();
        let of_others = about.mode() & 0o077;
        assert_eq!((about.uid(), of_others), (DAEMON, 0), "{}", pin.display());
        let mut bpftool = as_user(&lab, SOMEBODY, "bpftool");
        bpftool.args([kind, "show", "pinned"]).arg(pin);
        let output = child::finish(&mut bpftool).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && said.contains("Permission denied"),
            "{}: {said}",
            pin.display()
        );
    }
    let mut status = as_user(&lab, SOMEBODY, PUSH_CTL);
    status.arg("--socket").arg(lab.socket_path()).arg("status");
    let output = child::finish(&mut status).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("not allowed to open"),
        "{said}"
    );
}

#[test]
fn a_daemon_that_is_aborted_leaves_no_core() {
    let mut options = Options::new("push-sec-2", Path::new(PUSH_CTL));
    options.daemon = false;
    let lab = Lab::up(&options).unwrap();
    let aborted = |arguments: &[&str], is_up: &dyn Fn() -> bool| {
        let mut command = lab.gateway_command("prlimit");
        command.arg("--core=unlimited").args(arguments);
        command.current_dir(lab.folder());
        let mut child = command.spawn().unwrap();
        let begin = Instant::now();
        while !is_up() {
            assert!(begin.elapsed() < LIMIT, "it doesn't come up");
            thread::sleep(Duration::from_millis(20));
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGABRT).unwrap();
        child.wait().unwrap()
    };
    let config = lab.config_path();
    let started = lab.folder().join("started");
    let other = format!("touch {}; exec sleep 60", started.display());
    let control = aborted(&["sh", "-c", &other], &|| started.exists());
    if !control.core_dumped() {
        eprintln!("skipped: this machine writes no core files at all");
    }
    let arguments = [PUSH_CTL, "run", "-c", config.to_str().unwrap()];
    let daemon = aborted(&arguments, &|| {
        lab.push_ctl(&["status"]).output().unwrap().status.success()
    });
    assert_eq!(daemon.signal(), Some(libc::SIGABRT));
    assert!(!daemon.core_dumped());
}

#[test]
fn no_secret_is_where_it_does_not_belong() {
    let lab = Lab::up(&Options {
        daemon: false,
        ..Options::new("push-sec-3", Path::new(PUSH_CTL))
    })
    .unwrap();
    lab.start_by(&["env", "RUST_LOG=trace"]).unwrap();
    let story = Story::in_lab(lab);
    let lab = &story.lab;
    let granted = story.granted();
    let token = fs::read_to_string(&granted.token_file).unwrap();
    // A guess is a secret nearly as much.
    let wrong = story
        .clients()
        .granted(&granted.id, "ptk_00112233445566778899aabbccddeeff", 0)
        .unwrap();
    let refused = story
        .clients()
        .authorise(&outside(0), &story.app_key, &wrong);
    let refused = format!("{:#}", refused.unwrap_err());

    let api_key = fs::read_to_string(&story.app_key).unwrap();
    let api_key = api_key.trim().rsplit(' ').next().unwrap().to_owned();
    assert!(api_key.starts_with("pak_"));
    let secrets = [
        api_key.as_str(),
        token.trim(),
        "00112233445566778899aabbccddeeff",
    ];
    let pid = lab.pid().unwrap();
    let mut places = vec![
        ("log".to_owned(), lab.log().into_bytes()),
        ("refusal".to_owned(), refused.into_bytes()),
        (
            "events".to_owned(),
            lab.push_ctl_json(&["session", "show", &granted.id])
                .unwrap()
                .to_string()
                .into_bytes(),
        ),
    ];
    for about in ["cmdline", "environ"] {
        places.push((
            about.to_owned(),
            fs::read(format!("/proc/{pid}/{about}")).unwrap(),
        ));
    }
    let state = lab.folder().join("state");
    let kept = files_in(&state);
    assert!(
        kept.iter().any(|path| path.ends_with("push.redb")),
        "{kept:?}"
    );
    for path in kept {
        places.push((path.display().to_string(), fs::read(&path).unwrap()));
    }
    for (place, content) in places {
        for secret in secrets {
            // As text, and as the bytes that the text stands for.
            let digits = secret.trim_start_matches("pak_").trim_start_matches("ptk_");
            let bytes = hex::decode(digits).unwrap();
            for form in [digits.as_bytes(), &bytes] {
                let is_there = content.windows(form.len()).any(|window| window == form);
                assert!(!is_there, "{}… is in {place}", &secret[..6]);
            }
        }
    }
}

/// A lab whose daemon will have a key file; that file, and the configuration without it.
fn with_key_file(prefix: &str) -> (Lab, PathBuf, String) {
    let mut options = Options::new(prefix, Path::new(PUSH_CTL));
    options.daemon = false;
    let lab = Lab::up(&options).unwrap();
    let key_file = lab.folder().join("store.key");
    sh(&format!(
        "openssl rand -out {0} 32 && chmod 0400 {0}",
        key_file.display()
    ));
    let without = fs::read_to_string(lab.config_path()).unwrap();
    let with = format!("state_key_file = {key_file:?}\n{without}");
    fs::write(lab.config_path(), with).unwrap();
    (lab, key_file, without)
}

#[test]
fn with_a_key_file_no_key_is_in_the_store_and_all_goes_on_after_a_restart() {
    let (lab, key_file, without) = with_key_file("push-sec-4");
    let config = lab.config_path();
    let rekey = ["store", "rekey", "-c", config.to_str().unwrap()];
    let refused = child::finish(&mut lab.push_ctl(&rekey)).unwrap();
    assert!(child::said(&refused).contains("there is no store in"));
    lab.start().unwrap();
    let story = Story::in_lab(lab);
    let lab = &story.lab;
    let granted = story.granted();
    let token = fs::read_to_string(&granted.token_file).unwrap();
    let key = token.trim().parse::<Token>().unwrap().key().to_bytes();
    let shows_key = || {
        let content = fs::read(lab.folder().join("state/push.redb")).unwrap();
        content.windows(key.len()).any(|window| window == key)
    };
    assert!(!shows_key());

    // The key has to come from the store, not from what is pinned.
    lab.stop().unwrap();
    fs::remove_dir_all(lab.folder().join("bpf/push")).unwrap();
    lab.start().unwrap();
    let (server, device) = (server(lab, 0), device(lab, 0, 7000));
    let (mut sent, mut received) = ([0; 48], [0; 1500]);
    granted.traffic.trigger(1, &mut sent);
    server.send(&sent).unwrap();
    let len = device.recv(&mut received).unwrap();
    assert_eq!(received[..len], sent);

    lab.stop().unwrap();
    fs::write(lab.config_path(), &without).unwrap();
    let refused = format!("{:#}", lab.start().unwrap_err());
    assert!(refused.contains("set state_key_file"), "{refused}");
    let refused = child::finish(&mut lab.push_ctl(&rekey)).unwrap();
    assert!(!refused.status.success(), "the old key file is not told");
    let from = ["--from", key_file.to_str().unwrap()];
    child::output(lab.push_ctl(&rekey).args(from)).unwrap();
    assert!(shows_key(), "this test can see keys");
    lab.start().unwrap();
}

/// Where something is in the memory of a process that it writes to: in maps that the kernel has, too, and elsewhere,
/// by the line that `/proc/PID/maps` has for that, and how far into it.
fn in_memory(pid: u32, secret: &[u8]) -> [Vec<String>; 2] {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let [mut in_maps, mut elsewhere] = [Vec::new(), Vec::new()];
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))
        .unwrap()
        .lines()
    {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (begin, end) = fields[0].split_once('-').unwrap();
        let [begin, end] = [begin, end].map(|at| u64::from_str_radix(at, 16).unwrap());
        let mut content = vec![0; usize::try_from(end - begin).unwrap()];
        // Some of it has no pages to be read.
        if !fields[1].starts_with("rw") || memory.read_exact_at(&mut content, begin).is_err() {
            continue;
        }
        let first = content
            .iter()
            .enumerate()
            .filter(|&(_, &byte)| byte == secret[0]);
        let places = first
            .filter(|&(at, _)| content[at..].starts_with(secret))
            .map(|(at, _)| format!("{line} +{at:#x}"));
        match fields.get(5) {
            Some(&"anon_inode:bpf-map") => in_maps.extend(places),
            Some(_) | None => elsewhere.extend(places),
        }
    }
    [in_maps, elsewhere]
}

/// With a key file, the store has them in no form that could be seen here, nor have its pages in memory.
#[test]
fn a_key_is_in_memory_where_it_is_needed_and_for_as_long() {
    let (lab, _, _) = with_key_file("push-sec-5");
    lab.start().unwrap();
    let story = Story::in_lab(lab);
    let lab = &story.lab;
    let granted = story.granted();
    let token = fs::read_to_string(&granted.token_file).unwrap();
    let key = token.trim().parse::<Token>().unwrap().key().to_bytes();
    let digits = hex::encode(key);
    let seen = |secret: &[u8]| in_memory(lab.pid().unwrap(), secret);
    let [in_maps, elsewhere] = seen(&key);
    let sees = in_maps.len() == 1 && !elsewhere.is_empty();
    assert!(sees, "this test can see keys: {in_maps:?}, {elsewhere:?}");
    let settles = |expected: [usize; 2]| {
        let begin = Instant::now();
        loop {
            let places = seen(&key);
            if places.each_ref().map(Vec::len) == expected {
                break;
            }
            assert!(
                begin.elapsed() < LIMIT,
                "the key is in {places:#?}, and not in {expected:?} places"
            );
            thread::sleep(Duration::from_millis(20));
        }
    };

    // Nothing is left of what was written to a file.
    let file = lab.folder().join("sessions.jsonl");
    lab.push_ctl_json(&["session", "export", file.to_str().unwrap()])
        .unwrap();
    let exported = fs::read_to_string(&file).unwrap();
    assert!(exported.contains(&digits), "this test can see digits");
    assert_eq!(seen(digits.as_bytes()), [const { Vec::<String>::new() }; 2]);

    // Who has read it from the store has it once, and the path has it once; it isn't where it was put together, but
    // for the moment that a thread is at it.
    lab.kill().unwrap();
    lab.start().unwrap();
    settles([1, 1]);
    lab.push_ctl_json(&["session", "revoke", &granted.id])
        .unwrap();
    settles([0, 0]);
}

/// Whether this line of a dump is a jump that depends on something.
fn is_condition(line: &str) -> bool {
    line.contains(") if ")
}

#[test]
fn the_kernel_s_own_view_of_the_program_has_one_branch_on_the_tag() {
    Gateway::run(|gateway| {
        for nic in nics(&gateway.dataplane) {
            let id = nic.program_id;
            let dump = sh(&format!("bpftool prog dump xlated id {id}"));
            let lines = dump.lines().map(str::trim);
            let function: Vec<_> = lines
                .filter(|line| !line.starts_with(';'))
                .skip_while(|line| !(line.contains("has_valid_tag") && line.ends_with("):")))
                .skip(1)
                .take_while(|line| !line.ends_with("):"))
                .collect();
            // The tag is what is 24 bytes from the beginning of the trigger: two words.
            let loads: Vec<_> = (0..function.len())
                .filter(|&at| {
                    let line = function[at];
                    line.contains("= *(u64 *)(r")
                        && (line.ends_with("+24)") || line.ends_with("+32)"))
                })
                .collect();
            // (There may be more of these earlier: the stack has such places, too, but r10 leads there.)
            let of_tag: Vec<_> = loads
                .iter()
                .rev()
                .filter(|&&at| !function[at].contains("(r10"))
                .take(2)
                .collect();
            let [_last, first] = of_tag[..] else {
                panic!("the tag is not read as two words: {dump}");
            };
            // What comes behind the exit is blocks from before, which the compiler has put out of the way.
            let after = &function[*first..];
            let exit = after.iter().position(|line| line.ends_with(" exit"));
            let after = &after[..exit.expect("the function ends")];
            let conditions: Vec<_> = after.iter().filter(|line| is_condition(line)).collect();
            assert_eq!(conditions.len(), 1, "{}", after.join("\n"));
        }
    });
}
