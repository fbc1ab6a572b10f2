// The plane of valence and arousal: the newest reading as a point with its ellipse, earlier ones as a fading trail.
"use strict";

const CORNERS = { // corner colors, from which a point's color is mixed; red, green, blue
  pleasantStirring: [240, 184, 84], unpleasantStirring: [236, 96, 84], unpleasantCalm: [112, 142, 236], pleasantCalm: [84, 200, 172],
};
const MIDDLE = [224, 220, 210];
const GREY = [126, 130, 138];
const REACH = 0.455; // share of the side from the middle to ±1
const GLIDE_MS = 90; // time constant of the point's movement to a new reading

function affectColor(valence, arousal) {
  const right = (valence + 1) / 2, up = (arousal + 1) / 2;
  const away = Math.min(1, Math.hypot(valence, arousal) * 1.4);
  return MIDDLE.map((middle, i) => {
    const top = CORNERS.unpleasantStirring[i] * (1 - right) + CORNERS.pleasantStirring[i] * right;
    const bottom = CORNERS.unpleasantCalm[i] * (1 - right) + CORNERS.pleasantCalm[i] * right;
    return Math.round(middle + (bottom * (1 - up) + top * up - middle) * away);
  });
}

function rgba(color, alpha = 1) {
  return `rgba(${color.join(",")},${alpha})`;
}

function makePlane(canvas, trailMs) {
  const context = canvas.getContext("2d");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let trail = [], reading = null, point = null, live = false, drawnMs = 0, field = null;

  const x = (valence) => canvas.width * (0.5 + valence * REACH);
  const y = (arousal) => canvas.height * (0.5 - arousal * REACH);

  function drawField(side) { // the background, once for each size
    field = Object.assign(document.createElement("canvas"), { width: side, height: side });
    const ground = field.getContext("2d");
    const corners = [["pleasantStirring", 1, 0], ["unpleasantStirring", 0, 0], ["unpleasantCalm", 0, 1], ["pleasantCalm", 1, 1]];
    for (const [name, right, down] of corners) {
      const glow = ground.createRadialGradient(side * right, side * down, 0, side * right, side * down, side * 0.8);
      glow.addColorStop(0, rgba(CORNERS[name], 0.2));
      glow.addColorStop(0.5, rgba(CORNERS[name], 0.055));
      glow.addColorStop(1, rgba(CORNERS[name], 0));
      ground.fillStyle = glow;
      ground.fillRect(0, 0, side, side);
    }
    ground.lineWidth = Math.max(1, side / 900);
    for (const [radius, alpha] of [[0.5, 0.09], [1, 0.14]]) {
      ground.strokeStyle = rgba(MIDDLE, alpha);
      ground.beginPath();
      ground.arc(side / 2, side / 2, side * REACH * radius, 0, 2 * Math.PI);
      ground.stroke();
    }
    ground.strokeStyle = rgba(MIDDLE, 0.16);
    ground.beginPath();
    ground.moveTo(side / 2, side * (0.5 - REACH));
    ground.lineTo(side / 2, side * (0.5 + REACH));
    ground.moveTo(side * (0.5 - REACH), side / 2);
    ground.lineTo(side * (0.5 + REACH), side / 2);
    ground.stroke();
  }

  function drawTrail(nowMs, pen) {
    const way = [...trail, { ...point, atMs: nowMs }];
    const middle = (a, b) => [(x(a.valence) + x(b.valence)) / 2, (y(a.arousal) + y(b.arousal)) / 2];
    for (let i = 1; i < way.length - 1; i++) {
      const left = Math.max(0, 1 - (nowMs - way[i].atMs) / trailMs);
      context.strokeStyle = rgba(live ? affectColor(way[i].valence, way[i].arousal) : GREY, 0.75 * left ** 1.6);
      context.lineWidth = pen * (0.8 + 3.4 * left);
      context.beginPath();
      context.moveTo(...middle(way[i - 1], way[i]));
      context.quadraticCurveTo(x(way[i].valence), y(way[i].arousal), ...middle(way[i], way[i + 1]));
      context.stroke();
    }
  }

  function drawPoint(pen) {
    const color = live ? affectColor(point.valence, point.arousal) : GREY;
    const [px, py, radius] = [x(point.valence), y(point.arousal), 8.5 * pen];
    context.beginPath();
    const scale = canvas.width * REACH;
    context.ellipse(px, py, scale * reading.spread[0], scale * reading.spread[1], 0, 0, 2 * Math.PI);
    context.fillStyle = rgba(color, live ? 0.1 : 0.03);
    context.strokeStyle = rgba(color, live ? 0.5 : 0.35);
    context.lineWidth = 1.2 * pen;
    context.setLineDash(live ? [] : [5 * pen, 5 * pen]);
    context.fill();
    context.stroke();
    context.setLineDash([]);
    if (live) {
      const halo = context.createRadialGradient(px, py, radius * 0.5, px, py, radius * 4);
      halo.addColorStop(0, rgba(color, 0.5));
      halo.addColorStop(1, rgba(color, 0));
      context.fillStyle = halo;
      context.beginPath();
      context.arc(px, py, radius * 4, 0, 2 * Math.PI);
      context.fill();
    }
    context.beginPath();
    context.arc(px, py, radius, 0, 2 * Math.PI);
    context.fillStyle = live ? rgba(color) : "#14171d";
    context.strokeStyle = live ? "#fffdf8" : rgba(GREY);
    context.lineWidth = 2 * pen;
    context.fill();
    context.stroke();
  }

  function draw(nowMs) {
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (!side) return;
    if (canvas.width !== side || !field) {
      canvas.width = canvas.height = side;
      drawField(side);
    }
    context.clearRect(0, 0, side, side);
    context.drawImage(field, 0, 0);
    if (!reading) return;
    const share = still.matches ? 1 : 1 - Math.exp(-(nowMs - drawnMs) / GLIDE_MS);
    point.valence += (reading.valence - point.valence) * share;
    point.arousal += (reading.arousal - point.arousal) * share;
    drawnMs = nowMs;
    const pen = side / 600;
    trail = trail.filter((past) => nowMs - past.atMs < trailMs);
    drawTrail(nowMs, pen);
    drawPoint(pen);
  }

  return {
    // spread: half the ellipse's width and height, in units of the plane
    add(valence, arousal, spread, nowMs) {
      if (reading) trail.push({ valence: reading.valence, arousal: reading.arousal, atMs: nowMs });
      reading = { valence, arousal, spread };
      point = point || { valence, arousal };
    },
    clear() {
      trail = [];
      reading = point = null;
    },
    setLive(isLive) {
      live = isLive;
    },
    draw,
  };
}
