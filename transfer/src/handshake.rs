//! Who may talk to whom: the cryptography of the handshake, without any input or output.
//!
//! Both sides sign the transcript with the key that their name derives from, and MAC it with a key made of an X25519
//! exchange and the shared token. The opener proves first, so that nobody who merely connects is handed anything that a
//! token could be guessed from. Over TLS the transcript includes keying material of the TLS connection, which ties the
//! two together.

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey as VerifyingKey};

use crate::identity::EngineId;
use crate::settings::Secret;
use crate::wire::{HandshakeFrame, Hello, Proof};

const OPENER: &[u8] = b"kvstored-transfer 1 opener ";
const ACCEPTOR: &[u8] = b"kvstored-transfer 1 acceptor ";

/// An engine's keys: new at each start, never stored.
pub(crate) struct Identity {
    id: EngineId,
    public: [u8; 32],
    signing: Ed25519KeyPair,
    token: [u8; 32],
    grants: [u8; 32],
    heartbeat_ms: u32,
    random: SystemRandom,
}

fn no_random() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the operating system gives no random numbers",
    )
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, what)
}

impl Identity {
    /// Makes new keys. `peer_timeout` is told to peers.
    pub fn new(token: Option<&Secret>, peer_timeout: Duration) -> Result<Self> {
        let random = SystemRandom::new();
        let document = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| no_random())?;
        let signing = Ed25519KeyPair::from_pkcs8(document.as_ref())
            .map_err(|_| Error::internal("a new key is no key"))?;
        let mut public = [0; 32];
        for (byte, from) in public.iter_mut().zip(signing.public_key().as_ref()) {
            *byte = *from;
        }
        let mut grants = [0; 32];
        random.fill(&mut grants).map_err(|_| no_random())?;
        Ok(Self {
            id: EngineId::of_key(&public),
            public,
            signing,
            token: token.map_or([0; 32], |token| {
                blake3::derive_key("kvstored-transfer 1 token", token.expose())
            }),
            grants,
            heartbeat_ms: (peer_timeout.as_millis() / 3).clamp(1, u128::from(u32::MAX)) as u32,
            random,
        })
    }

    /// The engine's name.
    pub fn id(&self) -> EngineId {
        self.id
    }

    /// What keys of grants derive from.
    pub fn grant_secret(&self) -> &[u8; 32] {
        &self.grants
    }

    /// Bytes that nobody can guess.
    pub fn random(&self) -> Result<[u8; 32]> {
        let mut bytes = [0; 32];
        self.random.fill(&mut bytes).map_err(|_| no_random())?;
        Ok(bytes)
    }

    fn hello(&self) -> Result<(EphemeralPrivateKey, Hello)> {
        let private = EphemeralPrivateKey::generate(&X25519, &self.random).map_err(|_| no_random())?;
        let public = private.compute_public_key().map_err(|_| no_random())?;
        let mut exchange = [0; 32];
        for (byte, from) in exchange.iter_mut().zip(public.as_ref()) {
            *byte = *from;
        }
        let hello = Hello {
            heartbeat_ms: self.heartbeat_ms,
            identity: self.public,
            exchange,
            nonce: self.random()?,
        };
        Ok((private, hello))
    }

    /// What both sides know once both hellos are there.
    fn secrets(
        &self,
        private: EphemeralPrivateKey,
        opener: &Hello,
        acceptor: &Hello,
        theirs: &Hello,
        binding: &[u8],
    ) -> Result<Secrets> {
        let mut transcript = blake3::Hasher::new_derive_key("kvstored-transfer 1 transcript");
        transcript.update(&HandshakeFrame::OpenerHello(*opener).encode());
        transcript.update(&HandshakeFrame::AcceptorHello(*acceptor).encode());
        transcript.update(binding);
        let transcript = *transcript.finalize().as_bytes();
        let key = agree_ephemeral(
            private,
            &UnparsedPublicKey::new(&X25519, theirs.exchange),
            |shared| {
                let mut key = blake3::Hasher::new_derive_key("kvstored-transfer 1 handshake");
                key.update(shared);
                key.update(&self.token);
                key.update(&transcript);
                *key.finalize().as_bytes()
            },
        )
        .map_err(|_| refused("the other side's key is no key"))?;
        Ok(Secrets { transcript, key })
    }

    fn prove(&self, secrets: &Secrets, role: &[u8]) -> Proof {
        let mut signature = [0; 64];
        let signed = self.signing.sign(&secrets.signed(role));
        for (byte, from) in signature.iter_mut().zip(signed.as_ref()) {
            *byte = *from;
        }
        Proof {
            signature,
            mac: *secrets.mac(role, &signature).as_bytes(),
        }
    }
}

struct Secrets {
    transcript: [u8; 32],
    key: [u8; 32],
}

impl Secrets {
    fn signed(&self, role: &[u8]) -> Vec<u8> {
        [role, &self.transcript].concat()
    }

    fn mac(&self, role: &[u8], signature: &[u8; 64]) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(&self.key);
        mac.update(role);
        mac.update(signature);
        mac.finalize()
    }

    fn check(&self, role: &[u8], theirs: &Hello, proof: &Proof) -> Result<()> {
        if self.mac(role, &proof.signature) != blake3::Hash::from_bytes(proof.mac) {
            return Err(refused("the other side doesn't know the token"));
        }
        VerifyingKey::new(&ED25519, theirs.identity)
            .verify(&self.signed(role), &proof.signature)
            .map_err(|_| refused("the other side isn't who it says"))
    }
}

/// What a handshake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The other side.
    pub peer: EngineId,
    /// The heartbeat that it told.
    pub heartbeat: Duration,
}

impl Agreed {
    fn with(hello: &Hello) -> Self {
        Self {
            peer: EngineId::of_key(&hello.identity),
            heartbeat: Duration::from_millis(u64::from(hello.heartbeat_ms)),
        }
    }
}

/// An opener that waits for the acceptor's hello.
pub(crate) struct Opener {
    identity: Arc<Identity>,
    private: EphemeralPrivateKey,
    hello: Hello,
}

/// An opener that waits for the acceptor's proof.
pub(crate) struct ProvenOpener {
    secrets: Secrets,
    theirs: Hello,
}

impl Opener {
    /// Begins.
    pub fn new(identity: &Arc<Identity>) -> Result<(Self, HandshakeFrame)> {
        let (private, hello) = identity.hello()?;
        let identity = identity.clone();
        Ok((
            Self {
                identity,
                private,
                hello,
            },
            HandshakeFrame::OpenerHello(hello),
        ))
    }

    /// Goes on with the acceptor's hello. Fails with what the acceptor refused for, or `PermissionDenied`.
    pub fn prove(self, frame: HandshakeFrame, binding: &[u8]) -> Result<(ProvenOpener, HandshakeFrame)> {
        let theirs = match frame {
            HandshakeFrame::AcceptorHello(hello) => hello,
            other => return Err(unexpected(&other)),
        };
        let secrets = self
            .identity
            .secrets(self.private, &self.hello, &theirs, &theirs, binding)?;
        let proof = self.identity.prove(&secrets, OPENER);
        Ok((
            ProvenOpener { secrets, theirs },
            HandshakeFrame::OpenerProof(proof),
        ))
    }
}

impl ProvenOpener {
    /// Ends with the acceptor's proof. Fails as [`Opener::prove`] does.
    pub fn finish(&self, frame: HandshakeFrame) -> Result<Agreed> {
        match frame {
            HandshakeFrame::AcceptorProof(proof) => self.secrets.check(ACCEPTOR, &self.theirs, &proof)?,
            other => return Err(unexpected(&other)),
        }
        Ok(Agreed::with(&self.theirs))
    }
}

/// An acceptor that waits for the opener's proof.
pub(crate) struct Acceptor {
    identity: Arc<Identity>,
    secrets: Secrets,
    theirs: Hello,
}

impl Acceptor {
    /// Answers an opener's hello. Fails with `PermissionDenied` for any other frame.
    pub fn new(
        identity: &Arc<Identity>,
        frame: HandshakeFrame,
        binding: &[u8],
    ) -> Result<(Self, HandshakeFrame)> {
        let theirs = match frame {
            HandshakeFrame::OpenerHello(hello) => hello,
            other => return Err(unexpected(&other)),
        };
        let (private, hello) = identity.hello()?;
        let secrets = identity.secrets(private, &theirs, &hello, &theirs, binding)?;
        let identity = identity.clone();
        Ok((
            Self {
                identity,
                secrets,
                theirs,
            },
            HandshakeFrame::AcceptorHello(hello),
        ))
    }

    /// Ends with the opener's proof, and gives the acceptor's. Fails with `PermissionDenied`.
    pub fn finish(&self, frame: HandshakeFrame) -> Result<(Agreed, HandshakeFrame)> {
        match frame {
            HandshakeFrame::OpenerProof(proof) => self.secrets.check(OPENER, &self.theirs, &proof)?,
            other => return Err(unexpected(&other)),
        }
        let proof = self.identity.prove(&self.secrets, ACCEPTOR);
        Ok((Agreed::with(&self.theirs), HandshakeFrame::AcceptorProof(proof)))
    }
}

fn unexpected(frame: &HandshakeFrame) -> Error {
    match frame {
        HandshakeFrame::Refusal(kind) => Error::new(*kind, "the other side refused the connection"),
        _ => refused("a frame of the handshake came out of its turn"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(token: Option<&str>) -> Arc<Identity> {
        let token = token.map(Secret::new);
        Arc::new(Identity::new(token.as_ref(), Duration::from_secs(3)).unwrap())
    }

    fn run(
        opener: &Arc<Identity>,
        acceptor: &Arc<Identity>,
        bindings: [&[u8]; 2],
    ) -> Result<(Agreed, Agreed)> {
        let (opening, hello) = Opener::new(opener)?;
        let (accepting, answer) = Acceptor::new(acceptor, hello, bindings[1])?;
        let (proven, proof) = opening.prove(answer, bindings[0])?;
        let (of_acceptor, answer) = accepting.finish(proof)?;
        Ok((proven.finish(answer)?, of_acceptor))
    }

    #[test]
    fn each_side_learns_who_the_other_is() {
        for token in [None, Some("secret")] {
            let (one, other) = (identity(token), identity(token));
            let (of_opener, of_acceptor) = run(&one, &other, [b"x"; 2]).unwrap();
            assert_eq!((of_opener.peer, of_acceptor.peer), (other.id(), one.id()));
            assert_eq!(of_opener.heartbeat, Duration::from_secs(1));
        }
    }

    #[test]
    fn who_lacks_the_token_or_sits_in_the_middle_is_refused() {
        let pairs = [(Some("a"), Some("b")), (None, Some("b")), (Some("a"), None)];
        for (one, other) in pairs {
            let error = run(&identity(one), &identity(other), [b""; 2]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
        let same = identity(Some("a"));
        let error = run(&same, &identity(Some("a")), [b"one connection", b"another"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn nobody_can_say_another_engines_name() {
        let (one, other, liar) = (identity(None), identity(None), identity(None));
        let (opening, hello) = Opener::new(&liar).unwrap();
        let HandshakeFrame::OpenerHello(mut hello) = hello else {
            panic!("an opener says hello")
        };
        hello.identity = one.public;
        let lying = Opener { hello, ..opening };
        let (accepting, answer) = Acceptor::new(&other, HandshakeFrame::OpenerHello(hello), b"").unwrap();
        let (_, proof) = lying.prove(answer, b"").unwrap();
        assert_eq!(
            accepting.finish(proof).unwrap_err().kind(),
            ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn replayed_and_misplaced_frames_are_refused() {
        let (one, other) = (identity(Some("a")), identity(Some("a")));
        let (opening, hello) = Opener::new(&one).unwrap();
        let (_, answer) = Acceptor::new(&other, hello, b"").unwrap();
        let (_, proof) = opening.prove(answer, b"").unwrap();
        // the same frames again, to an acceptor with another nonce
        let (again, _) = Acceptor::new(&other, hello, b"").unwrap();
        assert_eq!(
            again.finish(proof).unwrap_err().kind(),
            ErrorKind::PermissionDenied
        );
        assert!(Acceptor::new(&other, proof, b"").is_err());
        let refusal = HandshakeFrame::Refusal(ErrorKind::Busy);
        assert_eq!(again.finish(refusal).unwrap_err().kind(), ErrorKind::Busy);
    }
}
