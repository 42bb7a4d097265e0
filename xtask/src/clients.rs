//! The parties, played by clients that know nothing of push: libcoap's, curl, and the operator's
//! command line.

use crate::child;
use crate::lab::{Lab, Party};
use crate::traffic;
use anyhow::{Context, Result, bail};
use push_common::token::Token;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a CoAP server answered.
#[derive(Debug)]
pub enum Answer {
    /// Success, with its lines of `key=value`.
    Success(HashMap<String, String>),
    /// An error: its code, and what it says.
    Refused(String),
}

/// A session that was granted.
pub struct Granted {
    /// Its identifier.
    pub id: String,
    /// What it takes to make triggers for it.
    pub traffic: traffic::Session,
    /// The file that holds its token: secrets have no place on a command line.
    pub token_file: PathBuf,
    /// The body of a validation request.
    pub request_file: PathBuf,
}

/// The clients' commands, and the files with their secrets.
pub struct Clients<'a> {
    /// Where they are.
    pub lab: &'a Lab,
    folder: PathBuf,
    show: &'a dyn Fn(&Command),
}

impl<'a> Clients<'a> {
    /// Clients in `lab`; `show` is given each command before it is run.
    ///
    /// # Errors
    ///
    /// When there is no place for files.
    pub fn new(lab: &'a Lab, show: &'a dyn Fn(&Command)) -> Result<Self> {
        let folder = lab.folder().join("clients");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { lab, folder, show })
    }

    /// The operator adds an application; gives the file with the header by which its server authenticates.
    ///
    /// # Errors
    ///
    /// When there is one of this name, or the controller doesn't answer.
    pub fn add_app(&self, name: &str) -> Result<PathBuf> {
        let mut command = self.lab.push_ctl(&["app", "add", name, "--json"]);
        (self.show)(&command);
        let added: Value = serde_json::from_str(&child::output(&mut command)?)?;
        let key = added["api_key"]
            .as_str()
            .context("the answer has no api_key")?;
        self.secret_file(
            &format!("{name}.header"),
            &format!("Authorization: Bearer {key}"),
        )
    }

    /// A device of that party sends a request to the internal interface, from `source`.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub fn coap(&self, party: Party, method: &str, source: &str, uri: &str) -> Result<Answer> {
        let mut command = self.lab.exec_in(party, "coap-client-notls");
        command.args(["-a", source, "-B", "10", "-m", method, "-A", "0", uri]);
        (self.show)(&command);
        let output = child::finish(&mut command)?;
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("coap-client-notls failed ({}): {complaint}", output.status);
        }
        if complaint.starts_with(['4', '5']) {
            return Ok(Answer::Refused(complaint));
        }
        let pairs = answer.lines().filter_map(|line| line.split_once('='));
        let pairs: HashMap<_, _> = pairs
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        if pairs.is_empty() && method == "post" {
            bail!("no answer to POST {uri}: {answer:?} {complaint:?}");
        }
        Ok(Answer::Success(pairs))
    }

    /// A device registers; gives the registration.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn register(
        &self,
        party: Party,
        source: &str,
        gateway: &str,
        query: &str,
    ) -> Result<String> {
        match self.coap(
            party,
            "post",
            source,
            &format!("coap://{gateway}/rd?{query}"),
        )? {
            Answer::Success(mut pairs) => pairs.remove("id").context("the answer has no id"),
            Answer::Refused(why) => bail!("the device was not registered: {why}"),
        }
    }

    /// An app on a device asks for a session.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn request_session(
        &self,
        party: Party,
        (source, gateway, registration): (&str, &str, &str),
        (app, instance, port): (&str, &str, u16),
    ) -> Result<Granted> {
        let uri =
            format!("coap://{gateway}/rd/{registration}/s?app={app}&inst={instance}&port={port}");
        let pairs = match self.coap(party, "post", source, &uri)? {
            Answer::Success(pairs) => pairs,
            Answer::Refused(why) => bail!("there was no session: {why}"),
        };
        let field = |key: &str| {
            pairs
                .get(key)
                .with_context(|| format!("the answer has no {key}"))
        };
        let token_generation = field("token_generation")?.parse()?;
        self.granted(field("session_id")?, field("token")?, token_generation)
    }

    /// What a device was told when it asked for a session, or for the next token of one.
    ///
    /// # Errors
    ///
    /// When the answer isn't what it should be, or can't be kept.
    pub fn granted(&self, id: &str, token: &str, token_generation: u8) -> Result<Granted> {
        Ok(Granted {
            id: id.to_owned(),
            traffic: traffic::Session {
                id: id.parse()?,
                key: token.parse::<Token>()?.key(),
                token_generation,
            },
            token_file: self.secret_file(&format!("{id}.{token_generation}.token"), token)?,
            request_file: self.secret_file(
                &format!("{id}.{token_generation}.json"),
                &json!({ "token": token }).to_string(),
            )?,
        })
    }

    /// An application server asks whether a token is good; gives status and body.
    ///
    /// # Errors
    ///
    /// When there is no answer, or it isn't JSON.
    pub fn validate(
        &self,
        gateway: &str,
        session: &str,
        (header, body): (Option<&Path>, &Path),
    ) -> Result<(u16, Value)> {
        let mut command = self.lab.exec_in(Party::Application, "curl");
        command
            .args([
                "-sS",
                "--max-time",
                "10",
                "-w",
                "\\n%{http_code}",
                "--cacert",
            ])
            .arg(self.lab.certificate_path());
        if let Some(header) = header {
            command.args(["-H", &format!("@{}", header.display())]);
        }
        command.args(["--json", &format!("@{}", body.display())]);
        command.arg(format!(
            "https://{gateway}:8443/v1/sessions/{session}/validate"
        ));
        (self.show)(&command);
        let text = child::output(&mut command)?;
        let (body, status) = text
            .trim_end()
            .rsplit_once('\n')
            .context("curl's answer has no status")?;
        let body = serde_json::from_str(body)
            .with_context(|| format!("the answer is not JSON: {body}"))?;
        Ok((status.parse()?, body))
    }

    /// An application server validates the token it was given.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn authorise(&self, gateway: &str, header: &Path, session: &Granted) -> Result<()> {
        let proof = (Some(header), &*session.request_file);
        let (status, body) = self.validate(gateway, &session.id, proof)?;
        if status != 200 || body["authorised"] != true {
            bail!("session {} was not authorised: {status} {body}", session.id);
        }
        Ok(())
    }

    /// The command by which an application server sends one trigger.
    #[must_use]
    pub fn send_trigger(
        &self,
        push_ctl: &Path,
        to: &str,
        session: &Granted,
        payload: &str,
    ) -> Command {
        let mut command = self.lab.exec_in(Party::Application, push_ctl);
        command.args([
            "trigger",
            "send",
            "--to",
            to,
            "--session",
            &session.id,
            "--token-file",
        ]);
        command
            .arg(&session.token_file)
            .args(["--payload", payload]);
        command
    }

    /// A file with a secret in it.
    ///
    /// # Errors
    ///
    /// When it can't be written.
    pub fn secret_file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        file.and_then(|mut file| file.write_all(content.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}
