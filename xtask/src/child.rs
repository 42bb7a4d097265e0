//! Running other programs: quietly, or with a line that shows that a long one is alive.

use anyhow::{Context, Result, anyhow, bail};
use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// Where Debian keeps the programs of administrators. `su` without `-` leaves them out of `PATH`.
const ADMIN_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Lines of a program's output that an error repeats.
const TAIL_LINES: usize = 25;

/// How often a line is printed about a long step when there is no terminal to keep one line alive on.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// `PATH`, with the folders of administrators at its end.
fn search_path() -> OsString {
    let mut folders: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    for admin in ADMIN_FOLDERS.map(PathBuf::from) {
        if !folders.contains(&admin) {
            folders.push(admin);
        }
    }
    env::join_paths(folders)
        .expect("the parts of PATH had no colon in them, nor have the folders added")
}

/// A command that finds the programs of administrators, too.
#[must_use]
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env("PATH", search_path());
    command
}

/// Whether `program` is on the path of [`command`].
#[must_use]
pub fn is_installed(program: &str) -> bool {
    installed(program).is_some()
}

/// Where on the path of [`command`] that is.
#[must_use]
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = search_path();
    let mut paths = env::split_paths(&path).map(|folder| folder.join(program));
    paths.find(|path| path.is_file())
}

/// The command as a person would type it.
#[must_use]
pub fn display(command: &Command) -> String {
    let mut line = quote(&command.get_program().to_string_lossy());
    for argument in command.get_args() {
        let _ = write!(line, " {}", quote(&argument.to_string_lossy()));
    }
    line
}

/// `word` as a shell takes it for one word.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs `command` and gives its standard output.
///
/// # Errors
///
/// When it can't be started, or fails; the error has what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            display(command),
            output.status,
            said(&output)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end without input, whether it succeeds or not.
///
/// # Errors
///
/// When it can't be started.
pub fn finish(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", display(command)))
}

/// Both outputs of a program in one text, for an error.
#[must_use]
pub fn said(output: &Output) -> String {
    let text = [&output.stderr, &output.stdout]
        .map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    text.join("\n").trim().to_owned()
}

/// Runs a long `command`, and meanwhile shows how long it has been at it and the last line it wrote.
///
/// # Errors
///
/// When it can't be started, fails, or isn't done after `limit`, when it is killed; the error has the end of what it wrote.
pub fn watch(command: &mut Command, limit: Duration) -> Result<()> {
    let line = display(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let in_time = follow(&mut child, limit, &mut tail);
    if !in_time {
        child.kill()?;
    }
    let status = child.wait()?;
    let tail = tail
        .into_iter()
        .map(|line| format!("\n    | {line}"))
        .collect::<String>();
    if !in_time {
        Err(anyhow!(
            "`{line}` was not done after {} s{tail}",
            limit.as_secs()
        ))
    } else if status.success() {
        Ok(())
    } else {
        Err(anyhow!("`{line}` failed ({status}){tail}"))
    }
}

/// Shows the progress of `child` until it closes its outputs; whether it did so within `limit`.
fn follow(child: &mut Child, limit: Duration, tail: &mut VecDeque<String>) -> bool {
    let (sender, lines) = mpsc::channel();
    let readers = [
        child
            .stdout
            .take()
            .map(|pipe| forward_lines(pipe, sender.clone())),
        child.stderr.take().map(|pipe| forward_lines(pipe, sender)),
    ];
    let started = Instant::now();
    let terminal = io::stderr().is_terminal();
    let mut reported = started;
    let in_time = loop {
        match lines.recv_timeout(Duration::from_millis(250)) {
            Ok(line) => {
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break true,
        }
        let elapsed = started.elapsed();
        if elapsed > limit {
            break false;
        }
        let last = tail.back().map_or("", String::as_str);
        if terminal {
            let shown: String = last.chars().take(70).collect();
            eprint!("\r\x1b[2K    {:>3} s  {shown}", elapsed.as_secs());
            let _ = io::stderr().flush();
        } else if reported.elapsed() > REPORT_EVERY {
            eprintln!("    {:>3} s  {last}", elapsed.as_secs());
            reported = Instant::now();
        }
    };
    if terminal {
        eprint!("\r\x1b[2K");
    }
    if in_time {
        for reader in readers.into_iter().flatten() {
            let _ = reader.join();
        }
    }
    in_time
}

/// Sends each line of `pipe` that has something in it.
fn forward_lines(
    pipe: impl Read + Send + 'static,
    lines: Sender<String>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            // Of a progress bar that redraws itself, the last state counts.
            let shown = line
                .trim_end()
                .rsplit('\r')
                .next()
                .unwrap_or_default()
                .trim();
            if !shown.is_empty() && lines.send(shown.to_owned()).is_err() {
                break;
            }
        }
    })
}
