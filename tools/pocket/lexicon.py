"""The words that the corpus is made of.

Invariant: every list is fixed and ordered, so that an index drawn from a seed always names the
same word. Nothing here is read from a file or from the network.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMON = _words(
    """
the a and of to in is it you that he she was for on are with as his her they at be this have from
or one had by word but not what all were we when your can said there use an each which do how
their if will up other about out many then them these so some would make like him into time has
look two more write go see number no way could people my than first water been call who oil its
now find long down day did get come made may part over new sound take only little work know place
year live me back give most very after thing our just name good sentence man think say great where
help through much before line right too mean old any same tell boy follow came want show also
around form three small set put end does another well large must big even such because turn here
why ask went men read need land different home us move try kind hand picture again change off play
spell air away animal house point page letter mother answer found study still learn should world
high every near add food between own below country plant last school father keep tree never start
city earth eye light thought head under story saw left few while along might close something seem
next hard open example begin life always those both paper together got group often run important
until children side feet car mile night walk white sea began grow took river four carry state once
book hear stop without second later miss idea enough eat face watch far really almost let above
girl sometimes mountain cut young talk soon list song being leave family body music color stand
sun question fish area mark dog horse bird problem complete room knew since ever piece told
usually friend easy heard order red door sure become top ship across today during short better
best however low hour black product happen whole measure remember early wave reach listen wind
rock space cover fast several hold himself toward five step morning pass vowel true hundred
against pattern numeral table north slow money map farm pull draw voice seen cold cry plan notice
south sing war ground fall king town unit figure certain field travel wood fire upon
"""
)

THINGS = _words(
    """
apple anchor basket bell blanket bottle bowl box brush bucket button candle carpet chair clock
coat coin comb compass cup curtain desk drum feather fence flag flute fork glass glove hammer harp
hat helmet hook jar kettle key kite knife ladder lamp lantern leaf lens lock mirror nail needle
net oar paint pan pearl pebble pen pencil piano pillow pipe plate pocket pot purse quilt rake
ribbon ring rope rug saddle sail saw scarf shell shoe shovel spade spoon stamp stone stool string
sword tent thread ticket torch towel toy tray trumpet trunk umbrella vase violin wagon wallet
wheel whistle window wire wrench yarn zipper engine server cache block token queue thread packet
memory kernel
"""
)

ANIMALS = _words(
    """
ant badger bat bear beaver bee camel cat cow crab crane crow deer dolphin donkey dove duck eagle
falcon ferret finch fox frog goat goose hamster hare hawk hedgehog hen heron horse kitten lamb
lion lizard lynx mole monkey moose mouse newt otter owl ox panda parrot penguin pig pony puppy
rabbit raven robin salmon seal sheep snail sparrow spider squirrel stork swan tiger toad trout
turtle whale wolf wren zebra
"""
)

COLOURS = _words(
    """
red blue green yellow orange purple brown black white grey pink silver golden violet amber teal
"""
)

FRUITS = _words(
    """
apple apricot banana cherry coconut date fig grape guava kiwi lemon lime mango melon olive orange
papaya peach pear pineapple plum pumpkin quince raspberry strawberry tomato
"""
)

CITIES = _words(
    """
Amsterdam Athens Berlin Bergen Boston Cairo Chicago Dakar Delhi Dublin Geneva Havana Helsinki
Kyoto Lagos Lima Lisbon London Lyon Madrid Milan Montreal Nairobi Oslo Osaka Paris Porto Prague
Quito Riga Rome Seoul Sydney Tokyo Toronto Tunis Turin Vienna Warsaw Zurich
"""
)

JOBS = _words(
    """
baker barber builder carpenter cook dancer doctor driver farmer fisher gardener guard hunter judge
lawyer miller miner nurse painter pilot plumber poet potter sailor singer smith soldier tailor
teacher waiter weaver writer
"""
)

VERBS_PAST = _words(
    """
asked baked borrowed bought brought built called carried caught cleaned climbed counted crossed
cut danced drew drank dropped ate felt filled followed found gave heard held hid kept knew laughed
learned left lifted listened lost made mended moved opened painted picked planted played pulled
pushed put ran reached read remembered rested sang sat saw shared sold sold stood stopped swam
talked thanked threw took travelled turned used visited waited walked wanted washed watched wrote
"""
)

ADJECTIVES = _words(
    """
angry bitter bold brave bright broad broken busy calm careful cheap clean clear clever cold cool
cruel curious dark deep dry dull eager early empty fair famous fierce flat fresh full funny gentle
glad grand happy heavy hidden high hollow honest hot huge humble hungry kind large lazy light
lonely long loud lovely lucky merry mild narrow neat new noisy odd old pale plain polite poor
proud pure quick quiet rare rich ripe rough round sad safe salty shallow sharp shiny short shy
silent simple sleepy slow small smooth soft sour steep stiff strange strong sweet tall tame thick
thin tidy tiny tired tough true vast warm weak wet wide wild wise wooden young
"""
)

MORE = _words(
    """
above abroad accept account action active actor address advice afraid afternoon agree airport
alarm album alone already although amount ancient anger angle answer anybody apart appear April
area argue army arrive article artist attack attend August aunt autumn average avoid awake baby
balance ball band bank barn base bath battle beach beard beat beauty bed behind believe belong
bench beside beyond bicycle bill birth birthday bite blood blow board boat bone border borrow
bother bottom brain branch bread break breakfast breath brick bridge brief bring brother build
burn bus business butter buy cake calendar camera camp candle capital captain card care case
castle cause ceiling cell centre century chain chance cheese chest chicken chief child chocolate
choice choose church circle class climb cloth cloud coffee collect college comfort common company
compare computer concert connect consider contain continue control copy corner correct cost cotton
count couple courage course cousin cream create crowd culture current custom damage dance danger
dare data daughter death debt December decide degree deliver demand depend describe desert design
detail develop diary dinner direct discover discuss distance divide double doubt dream dress drink
drive during dust duty eager ear earn east edge education effect effort egg eight either elbow
elder electric eleven empire energy enjoy enter equal escape evening event exact except excite
exercise expect explain extra fact fail faith false fear February feed feel fellow festival fever
fifty fight final finger finish first fit fix flame flight float flood floor flour flow flower fly
fold fool foot forest forget forgive fortune forward frame free freedom Friday front fuel future
game garden gate general gift goal gold govern grain grammar grass guess guest guide habit hair
half hall hammer happen harbour harvest hate heart heat heaven height hello hill history hobby
hole holiday honey honour hope hospital hotel human hundred hurry hurt husband ice imagine include
increase insect inside instead interest invent invite iron island January job join joke journey
joy juice July jump June jungle justice kick kitchen kiss knee knock knowledge lake language laugh
law lead leather leg lend lesson level library lie lift lip liquid listen load local lose love
lunch machine mail main manage manner March market marry master match matter May meal meat
medicine meet member message metal method middle milk mind minute mistake mix model modern moment
Monday month moon motion motor mouth museum mystery nation nature neck neighbour neither nephew
nest news nine noise none noon normal nose note nothing November object ocean October offer office
officer onion opinion opposite ordinary outside oven owner pack pain pair palace parent park party
past path patient pattern pause pay peace pepper perfect perhaps person phone photo phrase pilot
pin pink pity plain planet plastic pleasant please plenty poem poetry police pool popular position
possible post potato pour power practice prepare present president press pretty price pride prince
princess print prison prize program promise proof protect prove public pupil purpose puzzle
quality quarter queen question quickly quiet quite race radio rain raise rather ray ready reason
receive record refuse regular relax rent repair repeat reply report rescue respect rest result
return reward rice ride rise risk road roll roof root rose row rule rush safety salt sand Saturday
save scale scene science score scream screen search season seat secret seed sell send sense
September serve seven shade shadow shake shape share sheet shelf shine shirt shock shoot shop
shore shout shut sick signal silence silk sister six size skill skin sky sleep smell smile smoke
snake snow soap society sock soil son sort soup speak special speech speed spend spirit sport spot
spread spring square stage stair star station stay steal steam steel stem storm stove straight
stream street strike student subject success sudden sugar suit summer Sunday supper support
surface surprise sweep swim swing system tail tale task taste tax taxi tea teach team tear
telephone ten test thank theatre thick thief third thirsty thirty thousand throat throw thumb
thunder Thursday tie tight till tomorrow tongue tonight tool tooth total touch tour tower track
trade traffic train trap treasure trick trip trouble truck trust truth Tuesday tunnel twelve
twenty twice uncle understand uniform university upper useful usual valley value vegetable vehicle
victory view village visit wage wait wake wall warn wash waste wave way wear weather wedding
Wednesday week weigh welcome west wheat whisper whole wife win wing winter wish within woman
wonder worker worry worth wound wrap wrong yard yellow yesterday zero zoo
"""
)

WORDS = tuple(
    dict.fromkeys(
        COMMON
        + THINGS
        + ANIMALS
        + COLOURS
        + FRUITS
        + CITIES
        + JOBS
        + VERBS_PAST
        + ADJECTIVES
        + MORE
    )
)

FIRST_NAMES = _words(
    """
Anna Ben Clara David Ella Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tess Tom
Uma Victor Wendy Yusuf Zoe
"""
)

MORE_NAMES = _words(
    """
Ana Maria John Mary James Robert Michael Linda Peter Susan Lisa Mark Emma Lucy Oliver Jackie Sophie
Alice Bob Carol Dan Eve Frank George Hannah Ivan Julia Kevin Laura Martin Nina Oscar Petra Quentin
Rachel Simon Tina Ursula Viktor Walter Xenia Yara Zach Alex Chris Max Jan Hans Fritz Karl Otto Lena
Lukas Jonas Marie Pierre Jean Claire Luca Marco Giulia Sofia Carlos Juan Pedro Lucia Ahmed Fatima
Omar Layla Ali Wei Ming Yuki Hiro Ken Aiko Raj Priya Arjun Dmitri Elena Boris Igor Natasha Lars
Ingrid Sven Erik Freya Liam Chloe Isla Jade Ravi Noor Amir Sara Nora Adam Simone
"""
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip

ONSETS = _words(
    """
Ba Be Bo Bri Ca Ce Cor Da De Dor Dra El Fa Fen Fi Ga Gor Gri Ha Hel Ja Jo Ka Kel Kor La Lin Lo Ma
Mel Mi Mor Na Nel No Or Pa Pel Qua Ra Rin Ro Sa Sel So Ta Tel Tor Va Vel Vi Wil Xan Yar Za Zel
"""
)

MIDDLES = _words(
    """
ba da di go la li lo ma mi na no ra ri ro sa ti va vi
"""
)

CODAS = _words(
    """
bin dan den dor fin gan gar kin lan len lis mar mir nas nel nor pin ran ric rin ron san sel sor
tan tel tin tor van vik vin wen yn zar
"""
)

CHINESE = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军"
    "二无同么经法当起与好看学进种将还分此心前面又定见只主没公从知使全面间情己手关最问很信重实现点文相明已高由力理动但现新长明气体加常特门正位水东西"
    "南北春夏秋冬山河湖海风雨雪云星月花草树木鸟鱼马牛羊狗猫米茶酒书笔纸车船飞机电话灯火石金银铁红黄蓝绿白黑早晚今昨明每次名字母父兄弟姐妹男女老少朋友"
    "爱笑哭走跑跳坐站听读写唱画打开关买卖给送拿放吃喝睡醒快慢远近轻重冷热甜苦酸辣左右内外旧真假美丑安静忙闲难易简单复杂问题答案世界城市村路桥房屋窗"
    "桌椅床衣服鞋帽刀碗杯盘瓶钱钟表票信包球棋歌舞梦思想希望平和自由光阴影声音香味色形数量百千万零四五六七八九半双第几谁哪什怎样因果虽若或再便却更"
)

EMOJI_RANGES = (
    (0x1F300, 0x1F321), (0x1F330, 0x1F37D), (0x1F380, 0x1F394), (0x1F3A0, 0x1F3CB),
    (0x1F400, 0x1F43F), (0x1F440, 0x1F441), (0x1F442, 0x1F4FD), (0x1F600, 0x1F645),
    (0x1F680, 0x1F6C6), (0x1F90D, 0x1F93B), (0x1F940, 0x1F946), (0x1F950, 0x1F980),
)  # fmt: skip
EMOJI = tuple(chr(code) for low, high in EMOJI_RANGES for code in range(low, high))
