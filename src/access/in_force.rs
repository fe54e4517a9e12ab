//! The credentials in force: those of the latest load of `credentials_file` without a problem.

use std::sync::{Arc, RwLock};

use log::{info, warn};
use prometheus::IntGauge;

use super::authorization::{self, AuthorizationError};
use super::credentials::{Credential, CredentialStore, CredentialsFile};
use crate::config::Problems;
use crate::http::Headers;
use crate::locks::{read, write};
use crate::reload::Reloads;

/// The credentials in force; SIGHUP loads the file again. Clones share them.
#[derive(Clone)]
pub(crate) struct CredentialsInForce {
    /// A reload replaces the inner `Arc`; each check clones it, so that no lock is held during the check.
    store: Arc<RwLock<Arc<CredentialStore>>>,
    /// The realm of the challenges: the name of the daemon.
    realm: &'static str,
}

/// Why a request has no known credential, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalReason {
    /// There is no `Authorization` header.
    Missing,
    /// The `Authorization` header cannot be read.
    Malformed,
    /// No credential has these secrets.
    Unknown,
}

/// A request without a known credential: it is to be answered with 401.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unauthorized {
    /// The reason, for metrics.
    pub(crate) reason: RefusalReason,
    /// The reason, for the answer.
    pub(crate) message: &'static str,
    /// Value of `WWW-Authenticate`.
    pub(crate) challenges: String,
}

impl CredentialsInForce {
    /// Puts the credentials of `file` in force and registers their reload. A reload that fails leaves them in force and
    /// sets `stale` to 1.
    pub(crate) fn new(
        file: CredentialsFile,
        realm: &'static str,
        stale: IntGauge,
        reloads: &Reloads,
    ) -> CredentialsInForce {
        let warn_if_exposed = |file: &CredentialsFile| {
            if let Some(warning) = file.exposure() {
                warn!("{warning}");
            }
        };
        warn_if_exposed(&file);
        info!("credentials_file: loaded {} credentials from {}", file.store.len(), file.path.display());
        let store = Arc::new(RwLock::new(Arc::clone(&file.store)));
        let in_force = CredentialsInForce { store, realm };
        let reload_into = in_force.clone();
        reloads.add("credentials_file", move || {
            warn_if_exposed(&file);
            let mut problems = Problems::default();
            let mut store = CredentialStore::load(&file.path, &mut problems);
            if !problems.0.is_empty() {
                stale.set(1);
                let texts: Vec<_> = problems.0.iter().map(ToString::to_string).collect();
                return Err(texts.join("; "));
            }
            let former = reload_into.present();
            store.keep_meters_of(&former);
            let summary = format!("{} credentials, {} before", store.len(), former.len());
            *write(&reload_into.store) = Arc::new(store);
            stale.set(0);
            Ok(summary)
        });
        in_force
    }

    fn present(&self) -> Arc<CredentialStore> {
        Arc::clone(&read(&self.store))
    }

    /// Returns the credential that a request with these header fields presents.
    pub(crate) fn authenticate(&self, headers: &Headers) -> Result<Arc<Credential>, Unauthorized> {
        let store = self.present();
        let (reason, message) = match authorization::read(headers) {
            Ok(presented) => match store.find(&presented) {
                Some(credential) => return Ok(Arc::clone(credential)),
                // A wrong password gets the same answer, so that the answer does not reveal which users exist.
                None => (RefusalReason::Unknown, "unknown credentials"),
            },
            Err(AuthorizationError::Missing) => (RefusalReason::Missing, "missing Authorization header"),
            Err(AuthorizationError::Repeated) => (RefusalReason::Malformed, "more than one Authorization header"),
            Err(AuthorizationError::OtherScheme) => {
                (RefusalReason::Malformed, "unsupported Authorization scheme: use Bearer or Basic")
            }
            Err(AuthorizationError::Malformed) => (RefusalReason::Malformed, "malformed Authorization header"),
        };
        Err(Unauthorized { reason, message, challenges: store.challenges(self.realm) })
    }
}
