//! Asks the daemon over its socket.

use super::people::amount;
use super::{Failure, Output, live};
use crate::admin::api::Listing;
use crate::problem::Problem;
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Longer than the daemon takes to say that it can't answer in time.
pub(super) const TIMEOUT: Duration = Duration::from_secs(35);

/// What to ask, and how to tell people the answer.
pub(super) struct Question<T> {
    method: Method,
    path: String,
    body: Option<serde_json::Value>,
    people: Box<dyn FnOnce(&T) -> String>,
}

impl<T> Question<T> {
    /// Asks for something to be shown.
    pub(super) fn get(
        path: impl Into<String>,
        people: impl FnOnce(&T) -> String + 'static,
    ) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: None,
            people: Box::new(people),
        }
    }

    /// Asks for something to be done.
    pub(super) fn act(
        method: Method,
        path: impl Into<String>,
        body: Option<serde_json::Value>,
        people: impl FnOnce(&T) -> String + 'static,
    ) -> Self {
        Self {
            method,
            path: path.into(),
            body,
            people: Box::new(people),
        }
    }
}

/// Asks the daemon that listens on `socket`.
pub(super) fn ask<T: Serialize + DeserializeOwned>(
    socket: &Path,
    question: Question<T>,
) -> Result<Output, Failure> {
    let Question {
        method,
        path,
        body,
        people,
    } = question;
    let answer: T = wait_for(answer(socket, method, &path, body, TIMEOUT))?;
    Output::new(&answer, people(&answer))
}

/// What the daemon has at `path`, if it says so within `limit`.
pub(super) fn get<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    limit: Duration,
) -> Result<T, Failure> {
    wait_for(answer(socket, Method::GET, path, None, limit))
}

/// Has the daemon do what `path` stands for.
pub(super) fn act<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<T, Failure> {
    wait_for(answer(socket, method, path, None, TIMEOUT))
}

/// Runs what has to be waited for.
pub(super) fn wait_for<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::new(error.to_string()))?;
    runtime.block_on(answer)
}

/// Asks the daemon that listens on `socket` for a page of a list. Programs get an array; that there is
/// more goes to stderr.
pub(super) fn ask_for_list<T: Serialize + DeserializeOwned>(
    socket: &Path,
    path: &str,
    query: &impl Serialize,
    people: impl FnOnce(&Listing<T>) -> String,
) -> Result<Output, Failure> {
    let query =
        serde_urlencoded::to_string(query).map_err(|error| Failure::new(error.to_string()))?;
    let path = format!("{path}?{query}");
    let listing: Listing<T> = wait_for(answer(socket, Method::GET, &path, None, TIMEOUT))?;
    let (shown, total) = (listing.items.len(), listing.total);
    if shown < total {
        // If nobody reads it there is nobody to tell.
        let _unread = writeln!(
            io::stderr(),
            "push-ctl: {} of {} are shown; --limit, --offset and filters choose others",
            amount(shown as u64),
            amount(total as u64)
        );
    }
    Output::new(&listing.items, people(&listing))
}

async fn answer<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<serde_json::Value>,
    limit: Duration,
) -> Result<T, Failure> {
    let mut request = client(socket)?
        .request(method, format!("http://push{path}"))
        .timeout(limit);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = succeeded(socket, request).await?;
    let body = response
        .bytes()
        .await
        .map_err(|e| unreachable(socket, &e))?;
    serde_json::from_slice(&body).map_err(|_| not_understood(socket))
}

/// Hands over each line of an answer that goes on, from when it has `begun`, as long as both say that
/// somebody reads it. The end of the answer is a failure.
pub(super) fn listen(
    socket: &Path,
    path: &str,
    query: &[(&'static str, String)],
    begun: impl FnOnce() -> Result<bool, Failure>,
    mut line: impl FnMut(&str) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    wait_for(async {
        let request = client(socket)?
            .get(format!("http://push{path}"))
            .query(query);
        let mut response = succeeded(socket, request).await?;
        if !begun()? {
            return Ok(());
        }
        let mut look = tokio::time::interval(live::LOOK_EVERY);
        let mut received = Vec::new();
        loop {
            let chunk = tokio::select! {
                chunk = response.chunk() => chunk.map_err(|e| unreachable(socket, &e))?,
                _ = look.tick() => {
                    if live::is_read() {
                        continue;
                    }
                    return Ok(());
                }
            };
            let Some(chunk) = chunk else {
                let error = format!("the daemon at {} has ended", socket.display());
                return Err(Failure::with_hint(error, "begin anew once it is back"));
            };
            received.extend_from_slice(&chunk);
            let Some(whole) = received.iter().rposition(|&byte| byte == b'\n') else {
                continue;
            };
            let rest = received.split_off(whole + 1);
            for text in String::from_utf8_lossy(&received).lines() {
                if !line(text)? {
                    return Ok(());
                }
            }
            received = rest;
        }
    })
}

/// Hands over an answer piece by piece, up to its end, however long that takes.
pub(super) fn download(
    socket: &Path,
    path: &str,
    query: &impl Serialize,
    mut piece: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    wait_for(async {
        let request = client(socket)?.get(format!("http://push{path}"));
        let mut response = succeeded(socket, request.query(query)).await?;
        while let Some(received) = response
            .chunk()
            .await
            .map_err(|error| unreachable(socket, &error))?
        {
            piece(&received)?;
        }
        Ok(())
    })
}

/// Sends this, and has the answer, however long that takes.
pub(super) fn upload<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    query: &impl Serialize,
    body: Body,
) -> Result<T, Failure> {
    wait_for(async {
        let request = client(socket)?.post(format!("http://push{path}"));
        let response = succeeded(socket, request.query(query).body(body)).await?;
        let body = response
            .bytes()
            .await
            .map_err(|e| unreachable(socket, &e))?;
        serde_json::from_slice(&body).map_err(|_| not_understood(socket))
    })
}

fn client(socket: &Path) -> Result<Client, Failure> {
    let client = Client::builder().unix_socket(socket).build();
    client.map_err(|error| unreachable(socket, &error))
}

/// The answer to a request, if it isn't a problem.
async fn succeeded(socket: &Path, request: RequestBuilder) -> Result<Response, Failure> {
    let response = request.send().await.map_err(|e| unreachable(socket, &e))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let asked = response.url().clone();
    let body = response
        .bytes()
        .await
        .map_err(|e| unreachable(socket, &e))?;
    let problem: Problem = serde_json::from_slice(&body).map_err(|_| not_understood(socket))?;
    Err(Failure {
        hint: hint(&problem),
        is_usage: blames_arguments(&problem),
        ..Failure::new(named(&problem, &asked))
    })
}

/// Whether another command line would do; files that are named right may still have the wrong content.
fn blames_arguments(problem: &Problem) -> bool {
    let is_of_a_file = matches!(
        problem.name(),
        "bad-config" | "bad-credential" | "bad-export"
    );
    problem.status == StatusCode::BAD_REQUEST.as_u16() && !is_of_a_file
}

/// What is wrong, and with what: whoever goes through a list by script sees which one it was.
fn named(problem: &Problem, asked: &Url) -> String {
    let collection = match problem.name() {
        "unknown-app" => "apps",
        "unknown-credential" => "credentials",
        "unknown-session" => "sessions",
        "unknown-terminal" => "terminals",
        _ => return problem.detail.clone(),
    };
    let mut segments = asked.path_segments().into_iter().flatten();
    match segments
        .find(|&segment| segment == collection)
        .and(segments.next())
    {
        Some(name) => format!("{}: {name}", problem.detail),
        None => problem.detail.clone(),
    }
}

/// It is something else that answers.
pub(super) fn not_understood(socket: &Path) -> Failure {
    let error = format!(
        "what listens on {} doesn't answer like push-ctl {}",
        socket.display(),
        env!("CARGO_PKG_VERSION")
    );
    Failure::with_hint(error, "use the push-ctl that the daemon was started with")
}

fn hint(problem: &Problem) -> Option<String> {
    let hint = match problem.name() {
        "unknown-app" | "app-exists" | "apps-full" => "`push-ctl app list` shows which there are",
        "unknown-credential" => "`push-ctl app key list NAME` shows which there are",
        "unknown-session" => "`push-ctl session list` shows which there are",
        "bad-config" => {
            "`push-ctl config check` checks a file, `push-ctl config example` explains every key"
        }
        "needs-restart" => {
            "`systemctl restart push`, or end the daemon and start it anew: delivery goes on meanwhile"
        }
        "unknown-realm" => "`push-ctl realm list` shows which there are",
        "unknown-nic" => "`ip -br link` lists those of the daemon's network namespace",
        "nic-attached" | "nic-not-attached" => "`push-ctl nic list` shows which are attached",
        "unknown-terminal" => {
            "`push-ctl terminal list` shows which there are; `push-ctl terminal suspend ENDPOINT --unregistered` bars one that isn't there"
        }
        "upgrade-refused" => "nothing has changed: the daemon goes on as what it is",
        "not-a-key" => {
            "`push-ctl app key add NAME --certificate FILE` adds the next one, `push-ctl app key remove NAME ID` removes this one when its servers have that"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Why the daemon can't be asked.
fn unreachable(socket: &Path, error: &reqwest::Error) -> Failure {
    let socket = socket.display();
    if error.is_timeout() {
        let message = format!("the daemon at {socket} doesn't answer in time");
        return Failure::with_hint(message, "its log, on stderr of `push-ctl run`, may say why");
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    let mut source = None;
    while let Some(error) = cause {
        source = error.downcast_ref::<io::Error>().or(source);
        cause = error.source();
    }
    match source.map(io::Error::kind) {
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Failure::with_hint(
            format!("no daemon listens on {socket}"),
            "start it with `systemctl start push` or `push-ctl run -c FILE`, or name its admin_socket with --socket or PUSH_SOCKET",
        ),
        Some(io::ErrorKind::PermissionDenied) => Failure::with_hint(
            format!("not allowed to open {socket}"),
            "run as root, or as a member of the group that owns the socket",
        ),
        Some(_) | None => {
            let cause = source.map_or_else(|| error.to_string(), io::Error::to_string);
            Failure::new(format!("the daemon at {socket} can't be asked: {cause}"))
        }
    }
}
