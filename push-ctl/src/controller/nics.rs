//! What is asked of NICs: the kernel answers, while everything else waits.

use super::{Kernel, Owner};
use crate::dataplane::{Nic, NicRefusal, Reconfiguration};
use tokio::sync::oneshot;

/// A request about NICs, and where the answer goes.
pub(super) enum NicRequest {
    /// Attach to one more.
    Attach(Nic, oneshot::Sender<Result<(), NicRefusal>>),
    /// Detach from one.
    Detach(String, oneshot::Sender<Result<(), NicRefusal>>),
    /// Change all of this, or nothing.
    Reconfigure(Reconfiguration, oneshot::Sender<anyhow::Result<()>>),
}

impl<K: Kernel> Owner<K> {
    pub(super) async fn ask_kernel(&mut self, request: NicRequest) {
        // Who asked may have gone away meanwhile.
        match request {
            NicRequest::Attach(nic, sender) => {
                let result = self.kernel.attach_nic(nic).await;
                self.tell_trigger_addresses();
                drop(sender.send(result));
            }
            NicRequest::Detach(name, sender) => {
                let result = self.kernel.detach_nic(name).await;
                self.tell_trigger_addresses();
                drop(sender.send(result));
            }
            NicRequest::Reconfigure(to, sender) => {
                let result = self.kernel.reconfigure(to).await;
                self.tell_trigger_addresses();
                drop(sender.send(result));
            }
        }
    }

    fn tell_trigger_addresses(&self) {
        let now = self.kernel.trigger_addresses();
        self.trigger_addresses.send_if_modified(|addresses| {
            let is_news = *addresses != now;
            *addresses = now;
            is_news
        });
    }
}
