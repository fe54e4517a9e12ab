//! Reloads the credentials on SIGHUP.

use std::sync::{Arc, RwLock};

use log::{info, warn};
use prometheus::IntGauge;

use super::credentials::{CredentialStore, CredentialsFile};
use crate::config::Problems;
use crate::locks::{read, write};
use crate::reload::Reloads;

/// Returns the credentials in force, which each reload replaces. A reload that fails leaves them in force and sets
/// `stale` to 1.
pub(super) fn reloaded(file: CredentialsFile, stale: IntGauge, reloads: &Reloads) -> Arc<RwLock<Arc<CredentialStore>>> {
    let warn_if_exposed = |file: &CredentialsFile| {
        if let Some(warning) = file.exposure() {
            warn!("{warning}");
        }
    };
    warn_if_exposed(&file);
    info!("credentials_file: loaded {} credentials from {}", file.store.len(), file.path.display());
    let in_force = Arc::new(RwLock::new(Arc::clone(&file.store)));
    let reload_into = Arc::clone(&in_force);
    reloads.add("credentials_file", move || {
        warn_if_exposed(&file);
        let mut problems = Problems::default();
        let mut store = CredentialStore::load(&file.path, &mut problems);
        if !problems.0.is_empty() {
            stale.set(1);
            let texts: Vec<_> = problems.0.iter().map(ToString::to_string).collect();
            return Err(texts.join("; "));
        }
        let former = Arc::clone(&read(&reload_into));
        store.keep_meters_of(&former);
        let summary = format!("{} credentials, {} before", store.len(), former.len());
        *write(&reload_into) = Arc::new(store);
        stale.set(0);
        Ok(summary)
    });
    in_force
}
