// One player: mix and stem on one clock, so that they sound together where the hit says.

const LEAD_S = 0.06; // from the call to the first sample, so that both sources are scheduled before it
const FADE_S = 0.012; // no click at start and stop
const HEADROOM = 0.9;
const LONGEST_WAIT_S = 4; // a stem that enters later is not waited for from the mix's second 0,
const RUN_UP_S = 2; // but from this long before it enters

/** The greatest absolute sample of a buffer. */
function peakOf(buffer) {
  let peak = 0;
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < samples.length; i++) {
      const value = Math.abs(samples[i]);
      if (value > peak) peak = value;
    }
  }
  return peak;
}

/**
 * When each source starts, for playing from second `at` of the mix.
 *
 * `startS` is the second of the stem that sounds with the mix's second 0. Returns { mix, stem }, each
 * { delayS, offsetS, durationS } (seconds after the common start, into the buffer, how long) or null where nothing of it is heard.
 */
export function schedule({ at, lengthS, mixS, stemS, startS }) {
  const plan = (clipS, shift) => {
    if (clipS === null) return null;
    const position = at + shift; // the clip's second that sounds at the start; negative: it is yet to come
    const delayS = Math.max(0, -position);
    const offsetS = Math.max(0, position);
    const durationS = Math.min(clipS - offsetS, lengthS - at - delayS);
    return durationS > 0 ? { delayS, offsetS, durationS } : null;
  };
  return { mix: plan(mixS, 0), stem: plan(stemS, startS) };
}

/**
 * The mix's second to start at: 0, or shortly before a stem that enters late; a stem alone starts as it enters.
 */
export function firstSecond(startS, listen) {
  const entersS = Math.max(0, -startS);
  if (listen === "stem") return entersS;
  return entersS > LONGEST_WAIT_S ? entersS - RUN_UP_S : 0;
}

/**
 * Fires "change" whenever `state` does, and "problem" (detail: the error) when something cannot be played.
 *
 * state.status: idle, loading or playing; state.id: the hit's stem, or "mix"; state.listen: both, stem or mix.
 */
export class Player extends EventTarget {
  state = { status: "idle", id: null, listen: "both", balance: 0, lengthS: 0, hasMix: false, hasStem: false, plan: null };
  #context = null;
  #out = null;
  #levels = null;
  #voices = null; // what sounds now: { group, sources: [{ role, source, volume }] }
  #now = null;
  #zero = 0; // the context's second at which the mix's second 0 sounds
  #turn = 0;
  #last = null;

  /**
   * Play from the start (see firstSecond), stopping whatever plays.
   *
   * `mix` and `stem` are promises of AudioBuffers, or null where there is none; a mix promise may give null.
   * Must be called from a click or a key press: browsers let audio start only there.
   */
  async play({ id, mix, stem, startS = 0, lengthS, listen = "both" }) {
    this.stop();
    this.#last = { id, mix, stem, startS, lengthS, listen };
    const turn = this.#turn;
    this.#open();
    this.#set({ status: "loading", id, listen });
    try {
      const [mixBuffer, stemBuffer] = await Promise.all([mix, stem, this.#context.resume()]);
      if (turn !== this.#turn) return;
      if (!mixBuffer || !stemBuffer) this.#set({ listen: stemBuffer ? "stem" : "mix" });
      this.#now = { mix: mixBuffer ?? null, stem: stemBuffer ?? null, startS };
      this.#now.lengthS = mixBuffer ? mixBuffer.duration : lengthS;
      const peak = (mixBuffer ? peakOf(mixBuffer) : 0) + (stemBuffer ? peakOf(stemBuffer) : 0);
      this.#now.gain = Math.min(1, HEADROOM / Math.max(peak, 1e-6)); // the sum can never clip
      this.#start(stemBuffer ? firstSecond(startS, this.state.listen) : 0);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.stop();
      this.dispatchEvent(new CustomEvent("problem", { detail: error }));
    }
  }

  stop() {
    this.#turn++;
    this.#silence();
    this.#now = null;
    if (this.state.status !== "idle") this.#set({ status: "idle", id: null, plan: null, lengthS: 0 });
  }

  /** Stop, and let go of what played last. */
  forget() {
    this.#last = null;
    this.stop();
    this.#set({});
  }

  get canRepeat() {
    return this.#last !== null;
  }

  /** What plays, or played last. */
  get lastId() {
    return this.#last?.id ?? null;
  }

  repeat() {
    return this.play({ ...this.#last, listen: this.state.listen }); // what was chosen since then holds
  }

  /** Go to a second of the mix. */
  seek(seconds) {
    if (this.state.status !== "playing") return;
    this.#silence();
    this.#start(Math.min(Math.max(0, seconds), Math.max(0, this.#now.lengthS - 0.05)));
  }

  set listen(listen) {
    this.#set({ listen });
    this.#weigh();
  }

  /** -1: only the mix; 0: both as they are; 1: only the stem. */
  set balance(balance) {
    this.#set({ balance });
    this.#weigh();
  }

  /** The mix's second that is heard now. */
  get position() {
    if (this.state.status !== "playing") return 0;
    const heard = this.#context.currentTime - (this.#context.outputLatency || 0) - this.#zero;
    return Math.min(Math.max(0, heard), this.state.lengthS);
  }

  /** The loudness of what is heard now: root mean square of the last samples. */
  get level() {
    if (this.state.status !== "playing") return 0;
    this.#out.getFloatTimeDomainData(this.#levels);
    let power = 0;
    for (const sample of this.#levels) power += sample * sample;
    return Math.sqrt(power / this.#levels.length);
  }

  get running() {
    return this.#context?.state === "running";
  }

  #open() {
    if (this.#context) return;
    this.#context = new AudioContext();
    this.#out = new AnalyserNode(this.#context, { fftSize: 1024 });
    this.#levels = new Float32Array(this.#out.fftSize);
    this.#out.connect(this.#context.destination);
  }

  #start(at) {
    const { mix, stem, startS, lengthS, gain } = this.#now;
    const context = this.#context;
    const begin = context.currentTime + LEAD_S;
    const plan = schedule({ at, lengthS, mixS: mix?.duration ?? null, stemS: stem?.duration ?? null, startS });
    const group = new GainNode(context, { gain: 0 });
    group.gain.setValueAtTime(0, begin);
    group.gain.linearRampToValueAtTime(gain, begin + FADE_S);
    group.connect(this.#out);
    const voices = { group, sources: [] };
    for (const [role, buffer] of [["mix", mix], ["stem", stem]]) {
      if (!plan[role]) continue;
      const { delayS, offsetS, durationS } = plan[role];
      const source = new AudioBufferSourceNode(context, { buffer });
      const volume = new GainNode(context, { gain: this.#volume(role) });
      source.connect(volume).connect(group);
      source.start(begin + delayS, offsetS, durationS);
      voices.sources.push({ role, source, volume });
    }
    // The end is told by the audio clock itself: timers are late in a hidden tab.
    const end = new ConstantSourceNode(context, { offset: 0 });
    end.connect(group);
    end.start(begin);
    end.stop(begin + lengthS - at);
    end.onended = () => {
      if (this.#voices === voices) this.stop();
    };
    voices.sources.push({ role: "end", source: end, volume: null });
    this.#voices = voices;
    this.#zero = begin - at;
    this.#set({ status: "playing", lengthS, plan, hasMix: mix !== null, hasStem: stem !== null });
  }

  #silence() {
    if (!this.#voices) return;
    const { group, sources } = this.#voices;
    const now = this.#context.currentTime;
    this.#voices = null;
    group.gain.cancelScheduledValues(now);
    group.gain.setTargetAtTime(0, now, FADE_S / 3);
    for (const { source } of sources) source.stop(now + FADE_S);
  }

  #volume(role) {
    const { listen, balance } = this.state;
    if (listen !== "both") return listen === role ? 1 : 0;
    return Math.min(1, 1 + (role === "stem" ? balance : -balance));
  }

  #weigh() {
    for (const { role, volume } of this.#voices?.sources ?? []) {
      volume?.gain.setTargetAtTime(this.#volume(role), this.#context.currentTime, FADE_S);
    }
  }

  #set(change) {
    Object.assign(this.state, change);
    this.dispatchEvent(new Event("change"));
  }
}
