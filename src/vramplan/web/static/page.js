// What a page without this script cannot do: keep the theme, ask again while a control moves, search while typing, read a dropped file.
// No formula, name or choice is here: every answer is HTML or JSON from the server, and the address holds the state.
"use strict";
(() => {
  const root = document.documentElement;
  const kept = localStorage.getItem("theme");
  if (kept) root.dataset.theme = kept;

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    copies();
    const form = document.getElementById("scenario");
    more(document.getElementById("answer"));
    if (form) { live(form); search(form); sliders(form); files(form); }
  });

  function theme() {
    const button = document.getElementById("theme");
    const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      localStorage.setItem("theme", root.dataset.theme);
      show();
    });
    show();
  }

  function copies() {
    for (const button of document.querySelectorAll(".copy")) {
      button.hidden = false;
      button.onclick = async () => {
        await navigator.clipboard.writeText(button.closest(".code").querySelector("pre").textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      };
    }
  }

  function asked(form) {
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(form)) if (typeof value === "string" && value.trim()) query.append(name, value.trim());
    return query;
  }

  // Ask again for the answer whenever a control changes; the last question wins.
  function live(form) {
    let timer = 0, running = null;
    const place = document.getElementById("answer"), said = document.getElementById("said");
    const ask = async (moving) => {
      if (!form.isConnected) return;
      const query = asked(form);
      const before = new URLSearchParams(location.search).get("show");
      if (before) query.set("show", before);
      running?.abort();
      running = new AbortController();
      place.classList.add("waiting");
      try {
        const reply = await fetch("/answer?" + query + (moving ? "&moving=1" : ""), { signal: running.signal });
        const html = await reply.text();
        const open = [...place.querySelectorAll("details[open]")].map((one) => one.querySelector(".name")?.textContent);
        place.innerHTML = html;
        for (const one of place.querySelectorAll("details")) if (open.includes(one.querySelector(".name")?.textContent)) one.open = true;
        history.replaceState(null, "", "?" + query);
        said.textContent = place.querySelector(".verdict .sentence")?.textContent ?? "";
        const short = document.getElementById("short");
        short.hidden = !place.querySelector(".bar");
        short.textContent = place.querySelector(".verdict .word")?.textContent ?? "";
        copies();
        if (!moving) more(place);
        place.classList.remove("waiting");
      } catch (error) {
        if (error.name !== "AbortError") location.assign("?" + query);
      }
    };
    let leaving = false;
    const soon = (wait, moving) => { clearTimeout(timer); if (!leaving) timer = setTimeout(ask, wait, moving); };
    form.addEventListener("submit", () => { leaving = true; clearTimeout(timer); running?.abort(); });
    window.addEventListener("pageshow", () => { leaving = false; });
    form.addEventListener("input", (event) => event.target.type === "range" ? soon(30, true) : soon(250));
    form.addEventListener("change", () => soon(50));
    form.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.tagName === "INPUT") { event.preventDefault(); soon(0); } });
  }

  // Searches take longer than an answer: they come after it, one by one.
  let searching = null;
  async function more(place) {
    searching?.abort();
    searching = new AbortController();
    const signal = searching.signal;
    for (const part of place?.querySelectorAll(".search-part:not([data-here])") ?? []) {
      try {
        const reply = await fetch(part.dataset.src, { signal });
        if (reply.ok) part.innerHTML = await reply.text();
      } catch (error) {
        if (error.name !== "AbortError") throw error;
        return;
      }
    }
  }

  // A slider moves in halves of a doubling; its field holds the number.
  function sliders(form) {
    for (const slider of form.querySelectorAll(".slider")) {
      const field = document.getElementById(slider.dataset.for), most = Math.log2(Number(slider.max)) * 2;
      const number = (text) => { const found = /^([\d,_]+)\s*(k?)$/i.exec(text.trim()); return found ? Number(found[1].replace(/[,_]/g, "")) * (found[2] ? 1024 : 1) : NaN; };
      const follow = () => {
        const value = number(field.value || field.placeholder);
        if (value > 0) slider.value = String(Math.round(Math.log2(value) * 2));
        slider.setAttribute("aria-valuetext", field.value || field.placeholder);
      };
      slider.min = "0"; slider.max = String(most); slider.step = "1"; slider.hidden = false;
      slider.addEventListener("input", () => {
        const half = Number(slider.value);
        field.value = String(half % 2 ? Math.round(2 ** ((half - 1) / 2) * 1.5) : 2 ** (half / 2));
        slider.setAttribute("aria-valuetext", field.value);
      });
      field.addEventListener("input", follow);
      follow();
    }
  }

  function search(form) {
    const field = document.getElementById("model"), list = document.getElementById("models");
    let timer = 0;
    const find = async () => {
      const reply = await fetch("/api/v1/models?limit=12&q=" + encodeURIComponent(field.value.replace("/", " ")));
      if (!reply.ok) return;
      list.replaceChildren(...(await reply.json()).models.map((one) => Object.assign(document.createElement("option"), { value: one.id })));
    };
    field.addEventListener("input", (event) => {
      form.elements.config.value = "";
      if (event.inputType) { clearTimeout(timer); timer = setTimeout(find, 120); }
    });
    field.addEventListener("focus", () => { if (!list.children.length) find(); });
  }

  function files(form) {
    const drop = document.getElementById("drop"), file = document.getElementById("file"), said = document.getElementById("dropped");
    document.querySelector(".filepick").hidden = false;
    file.addEventListener("input", (event) => event.stopPropagation());
    file.addEventListener("change", (event) => { event.stopPropagation(); if (file.files[0]) send(file.files[0], said); });
    for (const place of [form, drop]) {
      place.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
      place.addEventListener("dragleave", () => drop.classList.remove("over"));
      place.addEventListener("drop", (event) => {
        const dropped = event.dataTransfer.files[0];
        drop.classList.remove("over");
        if (!dropped) return;
        event.preventDefault();
        event.stopPropagation();
        send(dropped, said);
      });
    }
  }

  async function send(file, said) {
    said.textContent = "Reading the header of " + file.name + " …";
    try {
      const reply = await fetch("/api/v1/inspect?name=" + encodeURIComponent(file.name.slice(-200)), { method: "POST", body: await (await head(file)).arrayBuffer(), headers: { "content-type": "application/octet-stream" } });
      const found = await reply.json();
      if (!reply.ok) throw new Error(found.detail);
      if (!found.address) { said.textContent = found.detail; return; }
      location.assign(found.address);
    } catch (error) {
      said.textContent = error.message;
    }
  }

  // The bytes that describe a file's tensors: of safetensors the length and the JSON, of GGUF all but the vocabulary.
  async function head(file) {
    const start = new DataView(await file.slice(0, 24).arrayBuffer());
    const magic = start.byteLength >= 24 ? start.getUint32(0) : 0;
    if (magic === 0x47475546) return gguf(new DataView(await file.slice(0, 100e6).arrayBuffer()));
    if (file.name.endsWith(".safetensors") && start.byteLength >= 8) return file.slice(0, 8 + Number(start.getBigUint64(0, true)));
    return file;
  }

  function gguf(view) {
    const bytes = new Uint8Array(view.buffer), sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    let at = 24, kept = 0;
    const long = () => { at += 8; return Number(view.getBigUint64(at - 8, true)); };
    const text = () => { const n = long(); at += n; return n; };
    const value = (type) => {
      if (type === 8) text();
      else if (type === 9) {
        const inner = view.getUint32(at, true);
        at += 4;
        const n = long();
        if (inner < 8 || inner > 9) at += n * sizes[inner]; else for (let i = 0; i < n; i++) value(inner);
      } else at += sizes[type];
    };
    const tensors = Number(view.getBigUint64(8, true)), pairs = Number(view.getBigUint64(16, true)), pieces = [];
    for (let i = 0; i < pairs; i++) {
      const from = at, n = text(), key = new TextDecoder().decode(bytes.subarray(at - n, at));
      const type = view.getUint32(at, true);
      at += 4;
      value(type);
      if (!key.startsWith("tokenizer.")) { pieces.push(bytes.subarray(from, at)); kept++; }
    }
    const from = at;
    for (let i = 0; i < tensors; i++) { text(); at += 4 + 8 * view.getUint32(at, true) + 12; }
    const first = bytes.slice(0, 24);
    new DataView(first.buffer).setBigUint64(16, BigInt(kept), true);
    return new Blob([first, ...pieces, bytes.subarray(from, at)]);
  }
})();
