//! Who plays, and single triggers that the audience can follow.

use super::ledger::{self, FORWARDED};
use super::stage::Stage;
use super::volley::Volleys;
use super::{GATEWAY_OUTSIDE, LIMIT, TRIGGER_PORT, host, socket_address};
use crate::clients::{Clients, Granted};
use crate::lab::{Lab, Party};
use crate::push_client::{PushClient, Trigger};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// For how long devices register; longer than the story.
const LIFETIME: Duration = Duration::from_hours(1);

/// Where the story is, and who tells it.
pub(super) struct Scene<'a> {
    pub(super) clients: Clients<'a>,
    pub(super) stage: Stage,
    pub(super) volleys: Volleys<'a>,
    pub(super) push_ctl: &'a Path,
}

/// An application, known to the operator.
pub(super) struct App {
    pub(super) name: &'static str,
    /// The file with the header by which its server authenticates.
    pub(super) key: PathBuf,
}

/// A device that has registered.
pub(super) struct Device {
    party: Party,
    address: &'static str,
    /// Where it has registered, as a URI has it.
    gateway: String,
    pub(super) registration: String,
}

impl App {
    pub(super) fn add(scene: &Scene, name: &'static str) -> Result<Self> {
        let key = scene.clients.add_app(name)?;
        Ok(Self { name, key })
    }
}

impl Device {
    pub(super) fn register(
        scene: &Scene,
        party: Party,
        name: &str,
        address_and_gateway: (&'static str, &str),
    ) -> Result<Self> {
        Self::register_for(scene, party, name, address_and_gateway, LIFETIME)
    }

    pub(super) fn register_for(
        scene: &Scene,
        party: Party,
        name: &str,
        (address, gateway): (&'static str, &str),
        lifetime: Duration,
    ) -> Result<Self> {
        let gateway = host(gateway);
        let query = format!("ep={name}&lt={}", lifetime.as_secs());
        let registration = scene.clients.register(party, address, &gateway, &query)?;
        Ok(Self {
            party,
            address,
            gateway,
            registration,
        })
    }

    /// A session of an app on it.
    pub(super) fn session(
        &self,
        scene: &Scene,
        app: &App,
        instance: &str,
        port: u16,
    ) -> Result<Granted> {
        scene.clients.request_session(
            self.party,
            (self.address, &self.gateway, &self.registration),
            (app.name, instance, port),
        )
    }

    /// A session that triggers can be sent for: authorised, and the way to the device is known.
    pub(super) fn ready_session(
        &self,
        scene: &Scene,
        app: &App,
        instance: &str,
        port: u16,
    ) -> Result<Granted> {
        let session = self.session(scene, app, instance, port)?;
        scene
            .clients
            .authorise(GATEWAY_OUTSIDE[0], &app.key, &session)?;
        wait_for_way(scene.clients.lab, &session)?;
        Ok(session)
    }

    /// The push client on it that gets the triggers of `session`.
    pub(super) fn push_client(
        &self,
        lab: &Lab,
        port: u16,
        session: &Granted,
    ) -> Result<PushClient> {
        let socket = lab.udp_socket(self.party, socket_address(self.address, port))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(PushClient::new(socket, session.traffic.key))
    }
}

/// Waits until it is known by which way triggers of the session get to its device.
pub(super) fn wait_for_way(lab: &Lab, session: &Granted) -> Result<()> {
    wait_until("the way to the device isn't found", || {
        let shown = lab.push_ctl_json(&["session", "show", &session.id])?;
        Ok(shown["next_hop"] == "resolved")
    })
}

/// Waits until it is so.
pub(super) fn wait_until(
    otherwise: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    while !condition()? {
        ensure!(started.elapsed() < LIMIT, "{otherwise}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// One trigger, sent by `push-ctl trigger send`.
pub(super) struct Single<'s> {
    /// By IPv4 (0) or IPv6 (1).
    pub(super) family: usize,
    pub(super) session: &'s Granted,
    pub(super) payload: &'s str,
    pub(super) options: &'s [&'s str],
}

impl Scene<'_> {
    /// The application's server sends a trigger, which has to get one of these verdicts; gives it, and what
    /// push-ctl has printed.
    pub(super) fn send(
        &mut self,
        single: &Single,
        is_due: bool,
        verdicts: &[&str],
    ) -> Result<(String, String)> {
        let gateway = socket_address(GATEWAY_OUTSIDE[single.family], TRIGGER_PORT).to_string();
        let mut command =
            self.clients
                .send_trigger(self.push_ctl, &gateway, single.session, single.payload);
        command.args(single.options);
        let before = ledger::counts(self.clients.lab)?;
        let printed = self.stage.run(&mut command)?;
        let verdict = self
            .volleys
            .enter_single(&before, is_due, verdicts)?
            .with_context(|| format!("the trigger has none of the verdicts {verdicts:?}"))?;
        Ok((verdict, printed))
    }

    /// The same, of a trigger that the device has to get and the audience can follow there.
    pub(super) fn follow(
        &mut self,
        family: usize,
        session: &Granted,
        payload: &str,
        device: &PushClient,
    ) -> Result<()> {
        let single = Single {
            family,
            session,
            payload,
            options: &[],
        };
        self.send(&single, true, FORWARDED)?;
        let trigger = device.receive()?;
        self.arrived(device, &trigger, payload)
    }

    /// Shows what a device has got.
    pub(super) fn arrived(
        &mut self,
        device: &PushClient,
        trigger: &Trigger,
        payload: &str,
    ) -> Result<()> {
        self.volleys.single.delivered += 1;
        self.stage.say(format!(
            "{} bytes at {} from {}",
            trigger.bytes(),
            device.address()?,
            trigger.source
        ));
        self.stage.check(
            trigger.payload == payload.as_bytes(),
            format!(
                "the device reads {:?}, and the tag is the server's",
                String::from_utf8_lossy(&trigger.payload)
            ),
        );
        Ok(())
    }

    /// What the operator is told of a session.
    pub(super) fn show_session(&self, session: &Granted) -> Result<Value> {
        let lab = self.clients.lab;
        let show = ["session", "show", &session.id];
        self.stage.command(&lab.push_ctl(&show));
        lab.push_ctl_json(&show)
    }
}
