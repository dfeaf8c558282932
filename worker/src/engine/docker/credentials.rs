//! Registry credentials out of Docker's own `config.json`, as the `docker` command reads them.
//!
//! Nothing here is ever logged or put into an error: only who was asked.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Helpers ask a keychain or a cloud's token service, some of them over the network.
const HELPER: Duration = Duration::from_secs(30);

/// Under which name Docker keeps the credentials of its default registry.
const DEFAULT_REGISTRY_KEY: &str = "https://index.docker.io/v1/";

/// What a registry asks for, in the form of the Engine's `X-Registry-Auth` header.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub(super) struct Credentials {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    password: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    identitytoken: String,
    serveraddress: String,
}

impl Credentials {
    /// The header's value. The Engine wants the alphabet that is safe in URLs, and ignores credentials in the
    /// other one without a word.
    pub(super) fn header(&self) -> String {
        URL_SAFE.encode(serde_json::to_vec(self).expect("INVARIANT: strings only"))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("serveraddress", &self.serveraddress).finish_non_exhaustive()
    }
}

/// Docker's file; what is not about credentials is left out.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "as the file names them")]
struct Auth {
    /// `user:password` in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    username: String,
    secret: String,
}

/// The credentials for a registry, if there are any. One that cannot be read is as good as none: the pull
/// may work without, and otherwise the registry's words say that they were missing; why is logged.
pub(super) async fn find(config_dir: &Path, registry: &str) -> Option<Credentials> {
    let path = config_dir.join("config.json");
    let text = match tokio::fs::read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "Docker's config.json cannot be read: pulling without credentials");
            return None;
        }
    };
    // The parser's message could quote the file: only the place is told.
    let config: Config = match serde_json::from_slice(&text) {
        Ok(config) => config,
        Err(error) => {
            let line = error.line();
            tracing::warn!(path = %path.display(), line, "Docker's config.json is not understood: pulling without credentials");
            return None;
        }
    };
    let key = if registry == "docker.io" { DEFAULT_REGISTRY_KEY } else { registry };
    let helper = config.cred_helpers.get(registry).or_else(|| config.cred_helpers.get(key));
    if let Some(helper) = helper.or(config.creds_store.as_ref()) {
        match ask_helper(helper, key).await {
            Ok(Some(credentials)) => return Some(credentials),
            Ok(None) => {} // it keeps none for this registry
            Err(reason) => tracing::warn!(helper, registry, reason, "the credential helper did not answer"),
        }
    }
    from_file(&config, key)
}

fn from_file(config: &Config, key: &str) -> Option<Credentials> {
    // Older versions of the `docker` command wrote a URL where newer ones write the host.
    let same = |written: &str| written == key || host_of(written) == host_of(key);
    let auth = config.auths.get(key).or_else(|| {
        let mut others: Vec<_> = config.auths.iter().filter(|(written, _)| same(written)).collect();
        others.sort_by_key(|(written, _)| written.as_str()); // a map's order is nobody's wish
        others.first().map(|(_, auth)| *auth)
    })?;
    let decoded = auth.auth.as_ref().and_then(|auth| STANDARD.decode(auth.trim()).ok());
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|pair| pair.split_once(':'));
    let username = pair.map(|(user, _)| user.to_owned()).or_else(|| auth.username.clone()).unwrap_or_default();
    // Docker pads with NUL.
    let password = pair.map(|(_, password)| password.trim_end_matches('\0').to_owned());
    let password = password.or_else(|| auth.password.clone()).unwrap_or_default();
    let identitytoken = auth.identitytoken.clone().unwrap_or_default();
    let is_empty = username.is_empty() && password.is_empty() && identitytoken.is_empty();
    let serveraddress = key.to_owned();
    (!is_empty).then_some(Credentials { username, password, identitytoken, serveraddress })
}

fn host_of(written: &str) -> &str {
    let host = written.strip_prefix("https://").or_else(|| written.strip_prefix("http://")).unwrap_or(written);
    host.split('/').next().unwrap_or(host)
}

/// Runs `docker-credential-<helper> get` with the registry on its standard input.
async fn ask_helper(helper: &str, key: &str) -> Result<Option<Credentials>, String> {
    ask_program(format!("docker-credential-{helper}").as_ref(), key).await
}

async fn ask_program(program: &Path, key: &str) -> Result<Option<Credentials>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("INVARIANT: piped above");
    let answer = async move {
        // One that prints without reading may have gone already: what it printed decides.
        let _ = stdin.write_all(key.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let answer = tokio::time::timeout(HELPER, answer).await;
    let output = answer.map_err(|_| format!("no answer in {} s", HELPER.as_secs()))?.map_err(|e| e.to_string())?;
    if !output.status.success() {
        // Helpers say this in words and by a failing status, as they do real failures; here it is no failure.
        let said = String::from_utf8_lossy(&output.stdout);
        return if said.contains("credentials not found") { Ok(None) } else { Err(output.status.to_string()) };
    }
    let kept: Kept = serde_json::from_slice(&output.stdout).map_err(|_| "its answer is not understood".to_owned())?;
    let serveraddress = key.to_owned();
    let is_token = kept.username == "<token>";
    Ok(Some(if is_token {
        Credentials { username: String::new(), password: String::new(), identitytoken: kept.secret, serveraddress }
    } else {
        Credentials { username: kept.username, password: kept.secret, identitytoken: String::new(), serveraddress }
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        dir
    }

    async fn pair(dir: &tempfile::TempDir, registry: &str) -> Option<(String, String)> {
        find(dir.path(), registry).await.map(|found| (found.username, found.password))
    }

    #[tokio::test]
    async fn credentials_stand_in_the_file() {
        let auth = STANDARD.encode("me:se:cret?~\0\0");
        let dir = config(&format!(
            r#"{{"auths": {{"r.example:5000": {{"auth": "{auth}"}}, "https://old.example/v2/": {{"auth": "{auth}"}},
                "https://index.docker.io/v1/": {{"auth": "{auth}"}}, "empty.example": {{}}}}, "psFormat": "x"}}"#
        ));
        for registry in ["r.example:5000", "old.example", "docker.io"] {
            assert_eq!(pair(&dir, registry).await, Some(("me".into(), "se:cret?~".into())), "{registry}");
        }
        for registry in ["r.example", "empty.example", "else.example"] {
            assert_eq!(pair(&dir, registry).await, None, "{registry}");
        }
    }

    #[tokio::test]
    async fn a_missing_or_broken_file_means_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path(), "r.example").await, None);
        assert_eq!(find(config("{\"auths\": [").path(), "r.example").await, None);
    }

    /// Helpers are found by the PATH, which all tests of a process share: this one is named by its path.
    async fn ask_script(script: &str) -> Result<Option<Credentials>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker-credential-test");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        loop {
            match ask_program(&path, "r.example").await {
                // Another test forked while the file was open for writing: its child lets go of it in a moment.
                Err(reason) if reason.contains("Text file busy") => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked() {
        let found = ask_script(
            "#!/bin/sh\nread -r server || :\n[ \"$1 $server\" = \"get r.example\" ] || exit 3\n\
             echo '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"pass\"}'\n",
        );
        let found = found.await.unwrap().unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("me", "pass"));

        let token =
            ask_script("#!/bin/sh\necho '{\"Username\":\"<token>\",\"Secret\":\"t0\"}'\n").await.unwrap().unwrap();
        assert_eq!((token.username.as_str(), token.identitytoken.as_str()), ("", "t0"));
    }

    #[tokio::test]
    async fn a_helper_without_credentials_is_told_from_a_broken_one() {
        let none = ask_script("#!/bin/sh\necho 'credentials not found in native keychain'\nexit 1\n").await;
        assert_eq!(none, Ok(None));
        assert!(ask_script("#!/bin/sh\nexit 1\n").await.is_err());
        let leaky = ask_script("#!/bin/sh\necho 'hunter2 {'\n").await.unwrap_err();
        assert!(!leaky.contains("hunter2"), "{leaky}");
    }

    #[test]
    fn a_secret_is_not_shown_and_the_header_is_safe_in_urls() {
        let kept = Credentials {
            username: "me".to_owned(),
            password: "~~~???>>>".to_owned(),
            identitytoken: String::new(),
            serveraddress: "r.example".to_owned(),
        };
        assert!(!format!("{kept:?}").contains('~'));
        let header = kept.header();
        assert!(!header.contains(['+', '/']), "{header}");
        let back: serde_json::Value = serde_json::from_slice(&URL_SAFE.decode(header).unwrap()).unwrap();
        assert_eq!(back["password"], "~~~???>>>");
    }
}
