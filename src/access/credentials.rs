//! `credentials_file`: the clients that may write to kproxy, or operate ktransfer.
//!
//! A client is found by a single look-up of one digest ([`HashedSecret::id`]), so the look-up fails in the same way for
//! an unknown user and for a wrong password. Of the secrets, only these digests are kept.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::authorization::PresentedCredentials;
use super::rate::{RateLimits, RateMeter};
use super::secret::{HashedSecret, SecretDigest};
use super::topics::TopicGlobs;
use crate::config::{Problems, Section};

/// Longest `name` of a credential, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// A scheme of the header `Authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Bearer,
    Basic,
}

/// A client that may use the daemon.
#[derive(Debug)]
pub(crate) struct Credential {
    /// `name`, for log lines and answers.
    pub(crate) name: Arc<str>,
    /// `topics`; `None` allows every topic that the daemon's own configuration allows.
    pub(crate) topics: Option<TopicGlobs>,
    /// The meter of `requests_per_second` and `bytes_per_second`; `None` means no limit.
    pub(crate) meter: Option<Arc<RateMeter>>,
}

/// The credentials of one load of the file. `Debug` shows only their number.
pub(crate) struct CredentialStore {
    /// A random key for each load of the file, so that digests of different loads cannot be compared.
    key: SecretDigest,
    by_id: HashMap<SecretDigest, Arc<Credential>>,
    /// The schemes in use.
    schemes: Vec<Scheme>,
}

impl fmt::Debug for CredentialStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CredentialStore of {}", self.by_id.len())
    }
}

impl CredentialStore {
    /// Loads a file and adds all its problems to `problems`; their texts contain no value of the file.
    pub(crate) fn load(file: &Path, problems: &mut Problems) -> CredentialStore {
        let mut section = Section::load_secrets(file, problems);
        let mut store = CredentialStore { key: SecretDigest::random(), by_id: HashMap::new(), schemes: Vec::new() };
        let mut names = BTreeSet::new();
        for mut entry in section.sections("credentials", true, problems).unwrap_or_default() {
            let credential = Credential {
                name: name(&mut entry, &mut names, problems),
                topics: TopicGlobs::from_section("topics", false, &mut entry, problems),
                meter: RateLimits::from_section(&mut entry, problems).map(|limits| Arc::new(RateMeter::new(limits))),
            };
            if let Some(secret) = HashedSecret::from_section(&mut entry, problems)
                && store.add(&secret, credential).is_err()
            {
                entry.note("", "has the same secret as an earlier credential", problems);
            }
            entry.finish(problems);
        }
        section.finish(problems);
        store
    }

    fn add(&mut self, secret: &HashedSecret, credential: Credential) -> Result<(), ()> {
        let scheme = match secret {
            HashedSecret::Bearer(_) => Scheme::Bearer,
            HashedSecret::Basic(..) => Scheme::Basic,
        };
        if !self.schemes.contains(&scheme) {
            self.schemes.push(scheme);
        }
        let before = self.by_id.insert(secret.id(&self.key), Arc::new(credential));
        if before.is_some() { Err(()) } else { Ok(()) }
    }

    /// Returns the credential with these secrets.
    pub(crate) fn find(&self, presented: &PresentedCredentials<'_>) -> Option<&Arc<Credential>> {
        self.by_id.get(&HashedSecret::of(presented).id(&self.key))
    }

    /// Returns the value of `WWW-Authenticate`: a challenge for each scheme in use.
    pub(crate) fn challenges(&self, realm: &str) -> String {
        let challenge = |scheme: &Scheme| match scheme {
            Scheme::Bearer => format!("Bearer realm=\"{realm}\""),
            Scheme::Basic => format!("Basic realm=\"{realm}\", charset=\"UTF-8\""),
        };
        self.schemes.iter().map(challenge).collect::<Vec<_>>().join(", ")
    }

    /// Returns the number of credentials.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Takes over the meter of each credential in `former` that has the same name and limits, so that a reload does not
    /// refill it.
    pub(crate) fn keep_meters_of(&mut self, former: &CredentialStore) {
        let meters: HashMap<&str, &Arc<RateMeter>> = former
            .by_id
            .values()
            .filter_map(|credential| Some((&*credential.name, credential.meter.as_ref()?)))
            .collect();
        for credential in self.by_id.values_mut() {
            let former = meters.get(&*credential.name);
            // The new store is not in force yet, so `get_mut` finds no other owner.
            if let (Some(former), Some(Credential { meter: Some(meter), .. })) = (former, Arc::get_mut(credential))
                && former.limits() == meter.limits()
            {
                *meter = Arc::clone(former);
            }
        }
    }
}

fn name(entry: &mut Section, names: &mut BTreeSet<Arc<str>>, problems: &mut Problems) -> Arc<str> {
    let is_given = entry.has("name");
    let name: Arc<str> = entry.string("name", None, problems).into();
    let is_name = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if is_given && !is_name {
        entry.note("name", format!("must be 1 to {MAX_NAME_BYTES} characters of a-z A-Z 0-9 . _ -"), problems);
    } else if is_given && !names.insert(Arc::clone(&name)) {
        entry.note("name", "is the name of an earlier credential", problems);
    }
    name
}

/// The file and the credentials loaded from it at start.
#[derive(Clone, Debug)]
pub(crate) struct CredentialsFile {
    pub(crate) path: PathBuf,
    pub(crate) store: Arc<CredentialStore>,
}

impl CredentialsFile {
    /// Takes `credentials_file` and loads it; returns `None` if the key is absent or empty.
    pub(crate) fn from_section(section: &mut Section, problems: &mut Problems) -> Option<Self> {
        if !section.has("credentials_file") {
            section.take("credentials_file");
            return None;
        }
        let path = PathBuf::from(section.string("credentials_file", None, problems));
        if path.as_os_str().is_empty() {
            section.note("credentials_file", "must be a file name", problems);
            return None;
        }
        let store = Arc::new(CredentialStore::load(&path, problems));
        Some(CredentialsFile { path, store })
    }

    /// Returns a warning if users other than the owner can read the file.
    pub(crate) fn exposure(&self) -> Option<String> {
        let mode = fs::metadata(&self.path).ok()?.permissions().mode();
        let path = self.path.display();
        (mode & 0o044 != 0)
            .then(|| format!("credentials_file: other users can read {path}, its mode is {:o}, use 600", mode & 0o777))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn load(text: &str) -> Result<CredentialStore, Vec<String>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut problems = Problems::default();
        let store = CredentialStore::load(file.path(), &mut problems);
        let texts: Vec<_> = problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect();
        if texts.is_empty() { Ok(store) } else { Err(texts) }
    }

    fn name_of<'a>(store: &'a CredentialStore, presented: PresentedCredentials<'_>) -> Option<&'a str> {
        store.find(&presented).map(|credential| &*credential.name)
    }

    const SHA256_OF_ABC: &str = "BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_client_is_found_by_its_credentials_only() {
        let store = load(&format!(
            "credentials:
 - {{name: plain-token, token: t0ken}}
 - {{name: hashed-token, token_sha256: {SHA256_OF_ABC}}}
 - {{name: plain-user, user: ann, password: 'p:w'}}
 - {{name: hashed-user, user: bob, password_sha256: {SHA256_OF_ABC}}}
 - {{name: second-password, user: ann, password: other}}
"
        ))
        .unwrap();
        let basic = |user: &str, password: &str| PresentedCredentials::Basic(user.into(), password.into());
        for (presented, name) in [
            (PresentedCredentials::Bearer(b"t0ken"), Some("plain-token")),
            (PresentedCredentials::Bearer(b"abc"), Some("hashed-token")),
            (PresentedCredentials::Bearer(b"T0ken"), None),
            (PresentedCredentials::Bearer(b"t0ke"), None),
            (PresentedCredentials::Bearer(b""), None),
            (PresentedCredentials::Bearer(SHA256_OF_ABC.as_bytes()), None),
            (PresentedCredentials::Bearer(b"p:w"), None),
            (basic("ann", "p:w"), Some("plain-user")),
            (basic("ann", "other"), Some("second-password")),
            (basic("bob", "abc"), Some("hashed-user")),
            (basic("bob", "p:w"), None),
            (basic("ann", "abc"), None),
            (basic("ann", ""), None),
            (basic("", ""), None),
            (basic("", "t0ken"), None),
            (basic("ann:p", "w"), None),
        ] {
            assert_eq!(name_of(&store, presented), name);
        }
        assert_eq!(store.challenges("r"), "Bearer realm=\"r\", Basic realm=\"r\", charset=\"UTF-8\"");
        let debug = format!("{store:?} {:?}", store.by_id);
        assert!(
            debug.contains("CredentialStore of 5") && !debug.contains("ann") && !debug.contains("t0ken"),
            "{debug}"
        );
    }

    #[test]
    fn every_problem_is_reported_at_once_without_any_secret() {
        let problems = load(
            "credentials:
 - {name: a, token: SECRET!}
 - {name: a, token: 'SECRET SECRET'}
 - {name: 'SECRET SECRET', token: SECRET1}
 - {name: b}
 - {name: c, user: SECRET, token: SECRET2}
 - {name: d, user: SECRET}
 - {name: e, password: SECRET}
 - {name: f, token: SECRET3, token_sha256: SECRET}
 - {name: g, token_sha256: SECRET}
 - {name: h, user: 'SECRET:', password: \"SECRET\\n\"}
 - {name: i, user: u, password: 12345}
 - {name: j, user: u, password: ''}
 - {name: k, token: SECRET1}
 - {name: l, token: SECRET4, SECRET: SECRET, topics: []}
 - {token: SECRET5, requests_per_second: SECRET}
 - SECRET
 - {name: m, token_sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}
 - {name: n, token_sha256: [SECRET]}
SECRET: SECRET
",
        )
        .unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "credentials[16]",
                "credentials[1].token",
                "credentials[2].name",
                "credentials[2].token",
                "credentials[3].name",
                "credentials[4]",
                "credentials[5]",
                "credentials[6]",
                "credentials[7]",
                "credentials[8]",
                "credentials[9].token_sha256",
                "credentials[10].user",
                "credentials[10].password",
                "credentials[11].password",
                "credentials[12].password",
                "credentials[13]",
                "credentials[14].topics",
                "credentials[14]",
                "credentials[15].name",
                "credentials[15].requests_per_second",
                "credentials[17].token_sha256",
                "credentials[18].token_sha256",
                "",
            ],
            "{problems:#?}"
        );
        let text = problems.join("\n");
        assert!(!text.contains("SECRET") && !text.contains("12345"), "{text}");
    }

    #[test]
    fn a_file_without_credentials_is_refused() {
        for text in ["", "credentials: []\n", "credentials:\n", "credentials: SECRET\n", "- SECRET\n", "a: [\n"] {
            let problems = load(text).unwrap_err();
            assert!(!problems.join("").contains("SECRET"), "{text:?}: {problems:?}");
        }
        let mut problems = Problems::default();
        CredentialStore::load(Path::new("/no/such/file"), &mut problems);
        assert_eq!(problems.0.len(), 1);
    }

    #[test]
    fn a_reload_keeps_the_meter_of_a_credential_unless_its_limits_changed() {
        let load_with = |rates: &str| load(&format!("credentials:\n - {{name: a, token: a{rates}}}\n")).unwrap();
        let meter = |store: &CredentialStore| store.find(&PresentedCredentials::Bearer(b"a")).unwrap().meter.clone();
        let former = load_with(", requests_per_second: 5");
        for (rates, is_kept) in [(", requests_per_second: 5", true), (", requests_per_second: 6", false), ("", false)] {
            let mut store = load_with(rates);
            store.keep_meters_of(&former);
            let (old, new) = (meter(&former).unwrap(), meter(&store));
            assert_eq!(new.is_some_and(|new| Arc::ptr_eq(&old, &new)), is_kept, "{rates}");
        }
    }

    #[test]
    fn the_example_has_every_key() {
        let file = include_str!("../../conf/kproxy.credentials.yaml");
        load(file).unwrap();
        let in_force: String =
            file.lines().filter(|line| !line.starts_with('#')).map(|line| line.replacen("# ", "", 1) + "\n").collect();
        for key in ["name", "token_sha256", "user", "password_sha256", "topics", "requests_per_second"] {
            assert!(file.contains(&format!("{key}:")), "{key}");
        }
        for key in ["token", "password", "bytes_per_second", "burst_seconds"] {
            assert!(in_force.contains(&format!(" {key}:")), "{key}");
        }
    }

    #[test]
    fn a_file_that_other_users_can_read_gets_a_warning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let store = Arc::new(load("credentials: [{name: a, token: a}]").unwrap());
        let credentials = CredentialsFile { path: file.path().to_owned(), store };
        for (mode, is_reported) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o700, false)] {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(credentials.exposure().is_some(), is_reported, "{mode:o}");
        }
    }
}
