//! What an operator's day is made of: tokens that rotate, a terminal that is suspended, an application that
//! fails, a quota that is used up.

use super::ledger::FORWARDED;
use super::outage::VISITOR;
use super::refusals::{coap_refusal, problem};
use super::scene::{App, Scene, Single, wait_for_way};
use super::{GATEWAY_INSIDE, GATEWAY_OUTSIDE, socket_address};
use crate::clients::{Answer, Granted};
use crate::emulated::Emulated;
use crate::lab::{APPLICATION, Party};
use anyhow::{Context, Result};
use serde_json::Value;

/// The application that has such days.
const APP: &str = "parcels";

/// Where devices register, and what a session gets that triggers name.
const COAP_PORT: u16 = 5683;
const UNKNOWN: &[&str] = &["unknown_session"];

/// Nobody serves it.
const STATUS_PORT: u16 = 9443;

/// A tablet has the application; the gateway tells it what happens, by confirmable CoAP.
pub(super) fn tell(scene: &mut Scene) -> Result<()> {
    let app = App::add(scene, APP)?;
    rotation(scene, &app)?;
    suspension(scene, &app)?;
    let mut tablet = Tablet::begin(scene)?;
    failure(scene, &app, &mut tablet)?;
    quota(scene, &app, &tablet)?;
    tablet.end(scene)
}

/// An emulated device: `push-ctl emulate device`.
struct Tablet {
    device: Emulated,
    registration: String,
    session: Granted,
}

impl Tablet {
    fn begin(scene: &Scene) -> Result<Self> {
        let clients = &scene.clients;
        let gateway = socket_address(GATEWAY_INSIDE[0], COAP_PORT);
        let options = ["--endpoint", "tablet", "--from", VISITOR];
        let show = scene.stage.narrator();
        let to = (gateway, APP);
        let mut device = Emulated::begin(clients.lab, scene.push_ctl, to, &options, &show)?;
        let registration = device.wait_for("registered")?["registration"].take();
        let registration = registration.as_str().context("it has no name")?.to_owned();
        let session = device.session(clients)?;
        scene.stage.say(format!(
            "the tablet is registered as {registration}, and has session {}",
            session.id
        ));
        Ok(Self {
            device,
            registration,
            session,
        })
    }

    /// The server proves that it holds the token of that session, and there is a way to the tablet.
    fn authorise(&self, scene: &Scene, app: &App, session: &Granted) -> Result<()> {
        let clients = &scene.clients;
        clients.authorise(GATEWAY_OUTSIDE[0], &app.key, session)?;
        wait_for_way(clients.lab, session)
    }

    /// A trigger, by the token of the generation, that the tablet gets.
    fn gets(&mut self, scene: &mut Scene, by: &Granted, payload: &str) -> Result<()> {
        send(scene, by, payload, true, FORWARDED)?;
        let trigger = self.device.wait_for("trigger")?;
        let hex = payload.bytes().map(|byte| format!("{byte:02x}"));
        let is_whole = trigger["payload_hex"] == hex.collect::<String>();
        scene.volleys.single.delivered += u64::from(is_whole);
        scene.stage.check(
            is_whole,
            format!("the tablet reads {payload:?}, and the tag is right"),
        );
        Ok(())
    }

    /// The gateway has told it that its session is over.
    fn is_told(&mut self, scene: &mut Scene, cause: &str) -> Result<()> {
        let told = self.device.wait_for("torn_down")?;
        scene.stage.check(
            told["session_id"] == *self.session.id && told["cause"] == cause,
            format!(
                "the tablet was told that the session is over: {}",
                told["cause"]
            ),
        );
        Ok(())
    }

    fn end(&mut self, scene: &mut Scene) -> Result<()> {
        let (summary, succeeded) = self.device.interrupt()?;
        scene.stage.check(
            succeeded,
            format!(
                "the tablet deregisters; {} of its requests were lost",
                summary["lost"]
            ),
        );
        Ok(())
    }
}

fn rotation(scene: &mut Scene, app: &App) -> Result<()> {
    scene
        .stage
        .step("A token is rotated, and no trigger is lost: for a while, both are good");
    let lab = scene.clients.lab;
    let mut tablet = Tablet::begin(scene)?;
    tablet.authorise(scene, app, &tablet.session)?;
    let first = tablet.device.newest_token(&scene.clients)?;
    tablet.gets(scene, &first, "by the first token")?;

    let rotate = ["session", "rotate", &tablet.session.id];
    scene.stage.run(&mut lab.push_ctl(&rotate))?;
    tablet.device.wait_for("token")?;
    let second = tablet.device.newest_token(&scene.clients)?;
    scene.stage.say(format!(
        "the tablet was asked, and has fetched a token of generation {}",
        second.traffic.token_generation
    ));
    tablet.authorise(scene, app, &second)?;
    tablet.gets(scene, &second, "by the second token")?;
    tablet.gets(scene, &first, "by the first one, once more")?;
    tablet.end(scene)
}

fn suspension(scene: &mut Scene, app: &App) -> Result<()> {
    scene
        .stage
        .step("The operator suspends a terminal: its sessions end in the kernel at once");
    let lab = scene.clients.lab;
    let mut tablet = Tablet::begin(scene)?;
    tablet.authorise(scene, app, &tablet.session)?;
    let session = tablet.device.newest_token(&scene.clients)?;
    tablet.gets(scene, &session, "before")?;

    let terminal = |what| lab.push_ctl(&["terminal", what, &tablet.registration]);
    scene.stage.run(&mut terminal("suspend"))?;
    let resume = &mut terminal("resume");
    send(scene, &session, "meanwhile", false, UNKNOWN)?;
    tablet.is_told(scene, "terminal_suspended")?;
    let answer = ask_for_session(scene, &tablet.registration, "one")?;
    coap_refusal(
        &mut scene.stage,
        &answer,
        "4.03",
        "nor does it get another session",
    );

    scene.stage.run(resume)?;
    tablet.end(scene)
}

fn failure(scene: &mut Scene, app: &App, tablet: &mut Tablet) -> Result<()> {
    scene
        .stage
        .step("An application's server is looked after; it fails, and its sessions end");
    let lab = scene.clients.lab;
    tablet.authorise(scene, app, &tablet.session)?;
    let session = tablet.device.newest_token(&scene.clients)?;
    tablet.gets(scene, &session, "all is well")?;

    let url = format!("https://{}:{STATUS_PORT}/status", APPLICATION[0]);
    let often = ["--interval", "1s", "--unreachable-after", "2s"];
    let monitor = [&["app", "monitor", APP, "--url", &url], &often[..]].concat();
    scene.stage.run(&mut lab.push_ctl(&monitor))?;
    scene
        .stage
        .say("there is no such server; after two seconds without an answer,");
    tablet.is_told(scene, "app_server_failed")?;
    send(scene, &session, "too late", false, UNKNOWN)?;
    let shown = scene.show_session(&session)?;
    scene.stage.check(
        shown["state"] == "ended" && shown["cause"] == "app_server_failed",
        format!("the session: {}, {}", shown["state"], shown["cause"]),
    );
    let off = ["app", "monitor", APP, "off"];
    scene.stage.run(&mut lab.push_ctl(&off))?;
    Ok(())
}

fn quota(scene: &mut Scene, app: &App, tablet: &Tablet) -> Result<()> {
    scene
        .stage
        .step("What an application may have and ask for is limited");
    let lab = scene.clients.lab;
    let limits = ["--sessions", "1", "--validations", "1/min"];
    let quota = [&["app", "quota", APP], &limits[..]].concat();
    scene.stage.run(&mut lab.push_ctl(&quota))?;
    let Answer::Success(granted) = ask_for_session(scene, &tablet.registration, "one")? else {
        scene.stage.check(false, "there was no session");
        return Ok(());
    };
    let field = |key: &str| granted.get(key).with_context(|| format!("no {key}"));
    let generation = field("token_generation")?.parse()?;
    let session = scene
        .clients
        .granted(field("session_id")?, field("token")?, generation)?;
    let answer = ask_for_session(scene, &tablet.registration, "two")?;
    coap_refusal(
        &mut scene.stage,
        &answer,
        "4.29",
        "a second session is one too many",
    );

    let proof = (Some(&*app.key), &*session.request_file);
    // Those from before count, too, until their minute is over.
    let mut answer = (200, Value::Null);
    for _ in 0..3 {
        if answer.0 == 200 {
            answer = scene
                .clients
                .validate(GATEWAY_OUTSIDE[0], &session.id, proof)?;
        }
    }
    problem(
        &mut scene.stage,
        &answer,
        429,
        "quota-exceeded",
        &format!("again in {} s", answer.1["retry_after_s"]),
    );
    Ok(())
}

/// An instance of the application on the tablet asks for a session, by libcoap's client.
fn ask_for_session(scene: &Scene, registration: &str, instance: &str) -> Result<Answer> {
    let gateway = GATEWAY_INSIDE[0];
    let query = format!("app={APP}&inst={instance}&port={COAP_PORT}");
    let uri = format!("coap://{gateway}/rd/{registration}/s?{query}");
    scene.clients.coap(Party::Device, "post", VISITOR, &uri)
}

fn send(
    scene: &mut Scene,
    session: &Granted,
    payload: &str,
    is_due: bool,
    verdicts: &[&str],
) -> Result<()> {
    let generation = session.traffic.token_generation.to_string();
    let single = Single {
        family: 0,
        session,
        payload,
        options: &["--generation", &generation],
    };
    let (verdict, _printed) = scene.send(&single, is_due, verdicts)?;
    if !is_due {
        scene.stage.check(true, format!("{payload:?}: {verdict}"));
    }
    Ok(())
}
