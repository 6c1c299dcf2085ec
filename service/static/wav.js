// A mix that was put together here, as a file.

/** An AudioBuffer as a WAV of 32-bit floats. */
export function wavOf(buffer) {
  const { numberOfChannels: channels, length, sampleRate } = buffer;
  const bytes = 4 * channels * length;
  const view = new DataView(new ArrayBuffer(44 + bytes));
  const text = (at, word) => [...word].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  const numbers = (at, size, ...values) => values.forEach((value, n) => (size === 2 ? view.setUint16(at + 2 * n, value, true) : view.setUint32(at + 4 * n, value, true)));
  text(0, "RIFF");
  numbers(4, 4, 36 + bytes);
  text(8, "WAVEfmt ");
  numbers(16, 4, 16);
  numbers(20, 2, 3, channels);
  numbers(24, 4, sampleRate, 4 * channels * sampleRate);
  numbers(32, 2, 4 * channels, 32);
  text(36, "data");
  numbers(40, 4, bytes);
  for (let channel = 0; channel < channels; channel++) {
    buffer.getChannelData(channel).forEach((sample, n) => view.setFloat32(44 + 4 * (n * channels + channel), sample, true));
  }
  return new Blob([view], { type: "audio/wav" });
}
