//! A lab with an application in it, for tests that go from registering to receiving.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use xtask::child;
use xtask::clients::{Clients, Granted};
use xtask::lab::{DEVICE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Lab, Options, Party};
use xtask::traffic::Session;

/// The daemon and command line under test.
pub(crate) const PUSH_CTL: &str = env!("CARGO_BIN_EXE_push-ctl");

pub(crate) const APP: &str = "weather";

pub(crate) struct Story {
    pub(crate) lab: Lab,
    /// The file with the header by which the application's server authenticates.
    pub(crate) app_key: PathBuf,
}

impl Story {
    /// Each test has a lab of its own, by its name.
    pub(crate) fn begin(prefix: &str) -> Self {
        Self::with(&Options::new(prefix, Path::new(PUSH_CTL)))
    }

    pub(crate) fn with(options: &Options) -> Self {
        let lab = Lab::up(options).unwrap();
        let app_key = Clients::new(&lab, &|_| ()).unwrap().add_app(APP).unwrap();
        Self { lab, app_key }
    }

    pub(crate) fn clients(&self) -> Clients<'_> {
        Clients::new(&self.lab, &|_| ()).unwrap()
    }

    /// Registers the device, by IPv4 (0) or IPv6 (1); gives the registration.
    pub(crate) fn registered(&self, family: usize) -> String {
        self.clients()
            .register(
                Party::Device,
                DEVICE[family],
                &inside(family),
                &format!("ep=phone-{family}"),
            )
            .unwrap()
    }

    /// A session of an app on a device that has registered.
    pub(crate) fn requested(
        &self,
        family: usize,
        registration: &str,
        instance: &str,
        port: u16,
    ) -> Granted {
        let device = (DEVICE[family], &*inside(family), registration);
        self.clients()
            .request_session(Party::Device, device, (APP, instance, port))
            .unwrap()
    }

    /// A session that may be used, of the device.
    pub(crate) fn authorised(&self, family: usize, port: u16) -> Session {
        self.authorised_at(Party::Device, DEVICE[family], family, port)
    }

    /// A session that may be used, of a device of that party, at that address.
    pub(crate) fn authorised_at(
        &self,
        party: Party,
        address: &str,
        family: usize,
        port: u16,
    ) -> Session {
        let clients = self.clients();
        let gateway = inside(family);
        let registration = clients
            .register(
                party,
                address,
                &gateway,
                &format!("ep=phone-{family}-{port}"),
            )
            .unwrap();
        let granted = clients
            .request_session(
                party,
                (address, &gateway, &registration),
                (APP, "one", port),
            )
            .unwrap();
        clients
            .authorise(&outside(family), &self.app_key, &granted)
            .unwrap();
        granted.traffic
    }

    /// Runs a line of shell in the party's namespace.
    pub(crate) fn shell(&self, party: Party, line: &str) -> String {
        child::output(self.lab.exec_in(party, "sh").args(["-ec", line])).unwrap()
    }
}

/// The gateway's address inside, as a URI has it.
pub(crate) fn inside(family: usize) -> String {
    host(GATEWAY_INSIDE[family])
}

/// The gateway's address outside, as a URI has it.
pub(crate) fn outside(family: usize) -> String {
    host(GATEWAY_OUTSIDE[family])
}

fn host(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

pub(crate) fn socket_address(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}
