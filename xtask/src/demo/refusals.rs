//! Each way to be refused.

use super::scene::{App, Device, Scene};
use super::stage::Stage;
use super::volley::Lane;
use super::{APP, DEVICE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, LOOK_PORT};
use crate::child;
use crate::clients::{Answer, Granted};
use crate::lab::Party;
use crate::traffic::{Load, Turn};
use anyhow::Result;
use push_common::token::Token;
use push_common::wire::SessionId;
use serde_json::{Value, json};

/// The interfaces refuse who may not ask.
pub(super) fn at_the_door(
    scene: &mut Scene,
    app: &App,
    session: &Granted,
    registration: &str,
) -> Result<()> {
    let Scene { clients, stage, .. } = scene;
    stage.step("At the door: who is refused, and why");
    let gateway = GATEWAY_INSIDE[0];
    let unknown =
        format!("coap://{gateway}/rd/0123456789abcdef/s?app={APP}&inst=x&port={LOOK_PORT}");
    let answer = clients.coap(Party::Device, "post", DEVICE[0], &unknown)?;
    coap_refusal(
        stage,
        &answer,
        "4.03",
        "a terminal that is not provisioned gets no session",
    );
    let unknown =
        format!("coap://{gateway}/rd/{registration}/s?app=nobody&inst=x&port={LOOK_PORT}");
    let answer = clients.coap(Party::Device, "post", DEVICE[0], &unknown)?;
    coap_refusal(
        stage,
        &answer,
        "4.04",
        "nor does an application that the operator doesn't know",
    );

    let wrong = Token::from_bytes([0x5A; 16]).to_text();
    let wrong = clients.secret_file(
        "wrong.json",
        &json!({ "token": String::from_utf8_lossy(&wrong) }).to_string(),
    )?;
    let outside = GATEWAY_OUTSIDE[0];
    let answer = clients.validate(outside, &session.id, (Some(&app.key), &wrong))?;
    problem(
        stage,
        &answer,
        403,
        "token-mismatch",
        "a wrong token is no proof",
    );
    let answer = clients.validate(outside, &session.id, (None, &session.request_file))?;
    problem(
        stage,
        &answer,
        401,
        "invalid-app-key",
        "nor is the right one without the application's key",
    );
    let other = clients.add_app("horoscope")?;
    let answer = clients.validate(outside, &session.id, (Some(&other), &session.request_file))?;
    problem(
        stage,
        &answer,
        404,
        "unknown-session",
        "nor with another application's key",
    );
    Ok(())
}

/// The data plane drops what is not authorised.
pub(super) fn on_the_path(scene: &mut Scene, app: &App, phone: &Device, lane: &Lane) -> Result<()> {
    scene
        .stage
        .step("On the path: what is dropped in the driver");
    let waiting = phone.session(scene, app, "waiting", LOOK_PORT)?;
    let Scene {
        clients,
        stage,
        volleys,
        ..
    } = scene;
    let mut guess = lane.sessions[0];
    guess.id = SessionId::new(guess.id.slot(), guess.id.generation() ^ 1);
    let load = Load {
        sessions: &[guess],
        ..volleys.load(lane, 1000)
    };
    volleys.dropped(
        stage,
        "unknown session: a guessed generation",
        lane,
        &load,
        "unknown_session",
    )?;

    let load = Load {
        turns: &[Turn::Forged],
        ..volleys.load(lane, 200_000)
    };
    volleys.dropped(stage, "forged tags", lane, &load, "bad_tag")?;

    volleys.delivered(stage, "the same sequence numbers, signed", lane, 100, None)?;
    // What was just delivered once; all of it is within the permitted lag.
    let load = Load {
        first_sequence: volleys.next_sequence - 100,
        ..volleys.load(lane, 100)
    };
    volleys.dropped(stage, "replayed", lane, &load, "replayed")?;
    let load = Load {
        first_sequence: 1,
        ..volleys.load(lane, 1000)
    };
    volleys.dropped(stage, "replayed, long ago", lane, &load, "sequence_too_old")?;

    let sessions = [waiting.traffic];
    let load = Load {
        sessions: &sessions,
        ..volleys.load(lane, 1000)
    };
    volleys.dropped(stage, "never authorised", lane, &load, "unknown_session")?;

    clients.authorise(GATEWAY_OUTSIDE[0], &app.key, &waiting)?;
    let mut revoke = clients.lab.push_ctl(&["session", "revoke", &waiting.id]);
    stage.command(&revoke);
    child::output(&mut revoke)?;
    volleys.dropped(stage, "revoked", lane, &load, "unknown_session")
}

pub(super) fn coap_refusal(stage: &mut Stage, answer: &Answer, code: &str, what: &str) {
    match answer {
        Answer::Refused(why) => stage.check(why.starts_with(code), format!("{why:?}: {what}")),
        Answer::Success(_) => stage.check(false, what),
    }
}

pub(super) fn problem(
    stage: &mut Stage,
    (status, body): &(u16, Value),
    expected: u16,
    cause: &str,
    what: &str,
) {
    let is_so = *status == expected && body["type"] == format!("urn:push:problem:{cause}");
    stage.check(is_so, format!("{status} {}: {what}", body["type"]));
}
