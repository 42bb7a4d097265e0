//! The configuration, read anew.

use super::none;
use crate::admin::api::Reloaded;
use crate::cli::client::Question;
use crate::cli::people::{Table, plural};
use reqwest::Method;

pub(in crate::cli) fn reload() -> Question<Reloaded> {
    let path = "/v1/config/reload";
    Question::act(Method::POST, path, None, |reloaded: &Reloaded| {
        let Reloaded { config, changes } = reloaded;
        let config = config.display();
        if changes.is_empty() {
            return format!("{config} is in force already: nothing is different.\n");
        }
        let mut table = Table::new(&["KEY", "BEFORE", "NOW"]);
        for change in changes {
            table.row([
                change.key.clone(),
                change.before.clone().unwrap_or_else(none),
                change.after.clone().unwrap_or_else(none),
            ]);
        }
        let count = plural(changes.len(), "change");
        format!("{config} is in force: {count}.\n{table}")
    })
}
