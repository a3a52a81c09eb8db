// Sends the picture, and shows how far its label is, which comes over the gateway. Without either of them the form works as any form does.
"use strict";

const form = document.getElementById("send"), progress = document.getElementById("progress"), pictures = document.getElementById("pictures");
const gateway = form.dataset.url || (form.dataset.port && (location.protocol === "https:" ? "wss://" : "ws://") + location.hostname + ":" + form.dataset.port + "/");
const PATIENCE = 2000; // ms: a label is made whether we hear of it or not

// Resolves when the gateway tells this page of the upload, or when that takes too long.
function watch(upload) {
  if (!gateway) return Promise.resolve(null);
  return new Promise(resolve => {
    const socket = new WebSocket(gateway);
    setTimeout(resolve, PATIENCE, socket);
    socket.onopen = () => socket.send(JSON.stringify({ type: "watch", upload }));
    socket.onclose = () => resolve(socket);
    socket.onmessage = event => {
      const said = JSON.parse(event.data);
      if (said.type === "watching") resolve(socket);
      if (said.type === "progress") {
        progress.textContent = said.done + " of " + said.of + " pictures";
        if (said.done === said.of) socket.close();
      }
    };
  });
}

function show({ name, url, width, height }) {
  const figure = document.createElement("figure"), image = new Image(width, height), caption = document.createElement("figcaption");
  image.src = url;
  caption.textContent = name + ", " + width + " by " + height;
  figure.append(image, caption);
  return figure;
}

form.onsubmit = async event => {
  event.preventDefault();
  const upload = Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
  const data = new FormData(form);
  data.append("watch", upload);
  pictures.replaceChildren();
  progress.textContent = "sending…";
  const socket = await watch(upload);
  try {
    const answer = await fetch("/label", { method: "POST", body: data, headers: { accept: "application/json" } });
    if (answer.ok) pictures.replaceChildren(...(await answer.json()).pictures.map(show));
    else progress.textContent = await answer.text();
  } catch {
    progress.textContent = "the shop cannot be reached";
  }
  if (socket) setTimeout(() => socket.close(), PATIENCE); // what is on its way may still come
};
